from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from lance_dagster.errors import ArtifactError
from lance_dagster.storage.files import is_local, json_digest, read_json, replacing, write_bytes, write_json
from lance_dagster_tests.storage.killing import kill, running

OLD: dict[str, Any] = {"digest": "0123", "name": "Čapek", "scores": [1.5, None]}
NEW: dict[str, Any] = {**OLD, "digest": "4567"}

KILLED_IN_THE_MIDDLE = """
import sys
from upath import UPath
from lance_dagster.storage.files import replacing
with replacing(UPath(sys.argv[1])) as sink:
    sink.write(b'{"digest": "45')
    sink.flush()
    hang()
"""
KILLED_BEFORE_THE_RENAME = """
import sys
from upath import UPath
from lance_dagster.storage import files
files.os.fsync = hang
files.write_json(UPath(sys.argv[1]), {"digest": "4567"})
"""
WRITES_WITHOUT_END = """
import sys
from upath import UPath
from lance_dagster.storage.files import write_json
for turn in range(1_000_000):
    write_json(UPath(sys.argv[1]), {"letters": "ab"[turn % 2] * 300_000})
    if turn == 1:
        print("ready", flush=True)
"""


def names(folder: UPath) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_a_half_and_raise(path: UPath, error: BaseException) -> None:
    with replacing(path) as sink:
        sink.write(b'{"digest": "45')
        raise error


def test_json_is_read_as_it_was_written(store: UPath) -> None:
    path = store / "deep" / "folder" / "manifest.json"
    write_json(path, OLD)
    assert read_json(path, "manifest") == OLD
    write_json(path, NEW)
    assert read_json(path, "manifest") == NEW
    assert names(path.parent) == ["manifest.json"]


def test_a_writer_that_raises_leaves_the_old_content_and_no_other_file(store: UPath) -> None:
    path = store / "manifest.json"
    write_json(path, OLD)
    with pytest.raises(RuntimeError, match="half way"):
        write_a_half_and_raise(path, RuntimeError("half way"))
    assert read_json(path, "manifest") == OLD
    assert names(store) == ["manifest.json"]


def test_a_writer_that_raises_leaves_no_file_where_there_was_none(store: UPath) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_a_half_and_raise(store / "new" / "manifest.json", KeyboardInterrupt())
    assert names(store / "new") == []


def test_the_new_content_is_not_there_before_the_block_ends(store: UPath) -> None:
    path = store / "manifest.json"
    write_json(path, OLD)
    with replacing(path) as sink:
        sink.write(b'{"digest": "4567"}')
        assert read_json(path, "manifest") == OLD
    assert read_json(path, "manifest") == {"digest": "4567"}


@pytest.mark.parametrize("program", [KILLED_IN_THE_MIDDLE, KILLED_BEFORE_THE_RENAME], ids=["middle", "before_rename"])
def test_a_write_that_is_killed_leaves_the_old_content(tmp_path: Path, program: str) -> None:
    path = UPath(tmp_path / "manifest.json")
    write_json(path, OLD)
    kill(program, path)
    assert read_json(path, "manifest") == OLD
    assert list(tmp_path.glob("*.json")) == [Path(path)]
    (leftover,) = set(names(UPath(tmp_path))) - {"manifest.json"}
    assert leftover.startswith(".manifest.json.")
    assert leftover.endswith(".tmp")


@pytest.mark.parametrize("program", [KILLED_IN_THE_MIDDLE, KILLED_BEFORE_THE_RENAME], ids=["middle", "before_rename"])
def test_a_first_write_that_is_killed_leaves_nothing_to_read(tmp_path: Path, program: str) -> None:
    path = UPath(tmp_path / "manifest.json")
    kill(program, path)
    with pytest.raises(ArtifactError, match="does not exist"):
        read_json(path, "manifest")
    write_json(path, NEW)
    assert read_json(path, "manifest") == NEW


def test_a_reader_never_sees_a_part_while_another_process_writes_and_is_killed(tmp_path: Path) -> None:
    path = UPath(tmp_path / "manifest.json")
    whole = [{"letters": letter * 300_000} for letter in "ab"]
    with running(WRITES_WITHOUT_END, path):
        seen: list[int] = []
        while len(seen) < 300 or (set(seen) != {0, 1} and len(seen) < 100_000):
            seen.append(whole.index(read_json(path, "manifest")))  # ValueError for anything but the two
    assert set(seen) == {0, 1}
    assert read_json(path, "manifest") in whole


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_hold_is_refused_and_the_old_file_stays(store: UPath, number: float) -> None:
    path = store / "manifest.json"
    write_json(path, OLD)
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be written: .* NaN or infinite"):
        write_json(path, {"loss": number})
    assert read_json(path, "manifest") == OLD


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"digest": "45', "not readable JSON"),
        (b"\xff{}", "not readable JSON"),
        (b"[1]", "JSON list"),
        (b"3", "JSON int"),
    ],
)
def test_a_file_that_holds_no_json_object_is_refused_by_name(store: UPath, content: bytes, complaint: str) -> None:
    path = store / "000.json"
    write_bytes(path, content)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        read_json(path, "mini/sft_checkpoint[000]")
    assert "mini/sft_checkpoint[000]" in str(caught.value)
    assert str(path) in str(caught.value)
    assert "re-materialise it" in str(caught.value)


def test_a_missing_file_is_named_with_the_next_step(store: UPath) -> None:
    with pytest.raises(ArtifactError, match=r"mini/sft_checkpoint\[000\] does not exist .*; materialise it first"):
        read_json(store / "000.json", "mini/sft_checkpoint[000]")


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "000.json").mkdir()
    with pytest.raises(ArtifactError, match="not readable JSON"):
        read_json(UPath(tmp_path / "000.json"), "manifest")


def test_the_digest_of_json_depends_on_its_content_not_on_the_order_of_its_keys() -> None:
    assert json_digest({"a": 1, "b": [2, {"c": 3, "d": None}]}) == json_digest({"b": [2, {"d": None, "c": 3}], "a": 1})
    others = [{"a": 1}, {"a": "1"}, {"a": None}, {"a": [1]}, {"a": 2}, {"b": 1}, [1], [1, 2], [2, 1]]
    assert len({json_digest(value) for value in others}) == len(others)


def test_paths_and_file_urls_are_local_and_other_urls_are_not() -> None:
    assert is_local(UPath("data/store"))
    assert is_local(UPath("/data/store"))
    assert is_local(UPath("file:///data/store"))
    assert not is_local(UPath("memory://data/store"))

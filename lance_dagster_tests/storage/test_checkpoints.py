from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from lance_dagster.errors import ArtifactError
from lance_dagster.storage.checkpoints import (
    CheckpointManifest,
    commit_checkpoint,
    hash_folder,
    local_folder,
    manifest_path,
    pass_on,
    read_manifest,
    staging_folder,
    verify,
    write_manifest,
)
from lance_dagster.storage.files import is_local
from lance_dagster_tests.storage.killing import kill

WEIGHTS = bytes(range(256)) * 40  # nothing here reads weights as weights
LABEL = "mini/sft_checkpoint[000]"


def staged(folder: Path, weights: bytes = WEIGHTS, files: Mapping[str, str] | None = None) -> Path:
    """A finished model folder: weights, a configuration, a chat template, and ``files``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    for name, text in {"config.json": "{}", "chat_template.jinja": "{{ messages }}", **(files or {})}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def commit(store: UPath, source: Path, **provenance: Any) -> CheckpointManifest:
    return commit_checkpoint(source, store / "sft_checkpoint", "000", kind="sft", **provenance)


def current(store: UPath) -> CheckpointManifest:
    return read_manifest(manifest_path(store / "sft_checkpoint", "000"), LABEL)


@pytest.fixture
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged(tmp_path_factory.mktemp("staged"))


# Commit and read


def test_a_committed_checkpoint_is_read_and_verified(store: UPath, source: Path) -> None:
    committed = commit(store, source, parent_digest="abcd", seed=42, data={"sft_set": "0123"}, metrics={"loss": 0.5})
    manifest = current(store)
    assert manifest == committed
    assert (manifest.kind, manifest.parent_digest, manifest.seed) == ("sft", "abcd", 42)
    assert (manifest.data, manifest.metrics) == ({"sft_set": "0123"}, {"loss": 0.5})
    assert manifest.versions["pyarrow"]
    assert sorted(manifest.files) == ["chat_template.jinja", "config.json", "model.safetensors"]
    verify(manifest, LABEL)


def test_a_checkpoint_is_used_as_a_local_folder_wherever_the_store_is(store: UPath, source: Path) -> None:
    manifest = commit(store, source)
    with local_folder(manifest) as folder:
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        assert hash_folder(UPath(folder)) == manifest.files
    assert folder.exists() is is_local(store)  # a copy is gone afterwards, the store itself stays


def test_a_folder_in_the_making_is_gone_even_when_training_fails() -> None:
    made = []

    def train() -> None:
        with staging_folder() as folder:
            made.append(staged(folder))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train()
    assert not made[0].exists()


def test_equal_files_have_equal_digests_whatever_the_provenance(tmp_path: Path, source: Path) -> None:
    one = commit(UPath(tmp_path / "one"), source, seed=1, parent_digest="ab", metrics={"loss": 1.0})
    copy = shutil.copytree(source, tmp_path / "copy")
    other = commit_checkpoint(copy, UPath(tmp_path / "two" / "dpo_checkpoint"), "007", kind="dpo", seed=2)
    assert one.digest == other.digest
    assert one != other


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder: staged(folder, WEIGHTS[:-1] + b"\x00"), id="weight"),
        pytest.param(lambda folder: staged(folder, files={"config.json": '{"layers": 2}'}), id="config"),
        pytest.param(lambda folder: staged(folder, files={"chat_template.jinja": ""}), id="template"),
        pytest.param(lambda folder: staged(folder, files={"vocab.txt": "a"}), id="new_file"),
        pytest.param(lambda folder: staged(folder, files={"modeling_own.py": "x = 1"}), id="model_code"),
        pytest.param(lambda folder: (folder / "model.safetensors").rename(folder / "m.safetensors"), id="file_name"),
    ],
)
def test_a_change_of_what_the_model_does_changes_the_digest(
    tmp_path: Path, source: Path, change: Callable[[Path], object]
) -> None:
    before = commit(UPath(tmp_path), source).digest
    change(source)
    assert commit(UPath(tmp_path), source).digest != before


def test_notes_about_the_training_do_not_change_the_digest(tmp_path: Path, source: Path) -> None:
    before = commit(UPath(tmp_path), source).digest
    staged(source, files={"README.md": "new", "pretraining.json": "{}", "training_args.json": "{}", "loss.png": "x"})
    assert commit(UPath(tmp_path), source).digest == before


def test_a_folder_without_weights_is_refused_and_leaves_no_manifest(store: UPath, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(WEIGHTS)
    with pytest.raises(ArtifactError, match=r"holds no \.safetensors file.*save_pretrained") as caught:
        commit(store, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert not manifest_path(store / "sft_checkpoint", "000").exists()


def test_a_metric_that_is_not_a_number_leaves_the_old_manifest(store: UPath, source: Path) -> None:
    before = commit(store, source)
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        commit(store, source, metrics={"loss": float("nan")})
    assert current(store) == before


# Again


def test_another_checkpoint_keeps_the_folder_of_the_old_one(store: UPath, source: Path) -> None:
    old = commit(store, source)
    new = commit(store, staged(source, WEIGHTS[::-1]))
    assert current(store) == new
    assert new.location != old.location
    verify(new, LABEL)
    verify(old, LABEL)


def test_the_same_checkpoint_again_uses_the_folder_that_is_there(store: UPath, source: Path) -> None:
    old = commit(store, source, seed=1)
    note = UPath(old.location) / "note.png"
    note.write_bytes(b"seen before")
    new = commit(store, source, seed=2)
    assert (new.location, new.digest, new.seed) == (old.location, old.digest, 2)
    assert note.read_bytes() == b"seen before"


@pytest.mark.parametrize("damage", ["changed", "missing", "all_missing", "added"])
def test_a_damaged_folder_is_mended_by_the_same_checkpoint(store: UPath, source: Path, damage: str) -> None:
    manifest = commit(store, source)
    folder = UPath(manifest.location)
    if damage == "changed":
        (folder / "model.safetensors").write_bytes(WEIGHTS[:-1])
    elif damage == "missing":
        (folder / "config.json").unlink()
    elif damage == "all_missing":
        (folder / "model.safetensors").unlink()
    else:
        (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"[Rr]e-materialise it"):
        verify(manifest, LABEL)
    assert commit(store, source) == manifest
    verify(manifest, LABEL)


# Damage


def refusal(manifest: CheckpointManifest) -> str:
    with pytest.raises(ArtifactError) as caught:
        verify(manifest, LABEL)
    assert LABEL in str(caught.value)
    assert "re-materialise it" in str(caught.value).lower()
    return str(caught.value)


@pytest.mark.parametrize("place", [0, len(WEIGHTS) // 2, len(WEIGHTS) - 1])
def test_a_changed_weight_byte_is_refused_by_file(store: UPath, source: Path, place: int) -> None:
    manifest = commit(store, source)
    weights = UPath(manifest.location) / "model.safetensors"
    weights.write_bytes(WEIGHTS[:place] + bytes([WEIGHTS[place] ^ 1]) + WEIGHTS[place + 1 :])
    assert f"{weights} does not match its digest" in refusal(manifest)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja"])
def test_a_missing_file_is_refused_by_name(store: UPath, source: Path, name: str) -> None:
    manifest = commit(store, source)
    (UPath(manifest.location) / name).unlink()
    assert f"{UPath(manifest.location) / name} is missing" in refusal(manifest)


def test_a_missing_folder_is_refused_by_name(store: UPath, source: Path) -> None:
    manifest = commit(store, source)
    folder = UPath(manifest.location)
    folder.fs.rm(folder.path, recursive=True)
    assert f"its folder {folder} is gone" in refusal(manifest)


def test_a_file_that_was_added_to_the_model_is_refused_by_name(store: UPath, source: Path) -> None:
    manifest = commit(store, source)
    (UPath(manifest.location) / "adapter_config.json").write_text("{}")
    assert "adapter_config.json was added by hand" in refusal(manifest)


def edited(path: UPath, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [({"owner": "me"}, "owner"), ({"location": 3}, "not a checkpoint manifest"), ({"location": None}, "manifest")],
)
def test_a_manifest_with_unknown_keys_or_values_is_refused(
    store: UPath, source: Path, values: dict[str, Any], complaint: str
) -> None:
    commit(store, source)
    path = manifest_path(store / "sft_checkpoint", "000")
    edited(path, **values)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        current(store)
    assert str(path) in str(caught.value)
    assert LABEL in str(caught.value)
    assert "re-materialise it" in str(caught.value)


@pytest.mark.parametrize("content", ['{"kind": "sft"}', "[]", '{"kind": "sf'])
def test_a_manifest_that_is_no_manifest_is_refused(store: UPath, content: str) -> None:
    path = manifest_path(store, "000")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(ArtifactError, match="re-materialise it"):
        read_manifest(path, LABEL)


def test_a_checkpoint_that_was_never_made_is_refused_with_the_next_step(store: UPath) -> None:
    with pytest.raises(ArtifactError, match=r"mini/sft_checkpoint\[000\] does not exist .*materialise it first"):
        current(store)


# Moved


def test_a_store_that_is_moved_as_a_whole_still_reads(tmp_path: Path, source: Path) -> None:
    before = commit(UPath(tmp_path / "here"), source)
    shutil.move(tmp_path / "here", tmp_path / "there")
    after = current(UPath(tmp_path / "there"))
    assert after.digest == before.digest
    assert after.location.startswith(str(tmp_path / "there"))
    verify(after, LABEL)
    with local_folder(after) as folder:
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_store_that_is_moved_to_another_file_system_still_reads(tmp_path: Path, source: Path) -> None:
    before = commit(UPath(tmp_path / "here"), source)
    there = UPath(f"memory://{tmp_path.name}/there")
    there.fs.put(str(tmp_path / "here"), there.path, recursive=True)
    assert current(there).digest == before.digest
    verify(current(there), LABEL)


def test_a_model_outside_the_store_keeps_its_place_when_the_store_moves(tmp_path: Path, source: Path) -> None:
    files = hash_folder(UPath(source))
    manifest = CheckpointManifest("base", str(source), "0123", files)
    write_manifest(UPath(tmp_path / "here" / "current.json"), manifest)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = read_manifest(UPath(tmp_path / "there" / "current.json"), "mini/base_checkpoint")
    assert moved == manifest
    verify(moved, "mini/base_checkpoint")


# Killed

KILLED = """
import shutil, sys
from pathlib import Path
from upath import UPath
from lance_dagster.storage import checkpoints
{point} = hang
checkpoints.commit_checkpoint(Path(sys.argv[1]), UPath(sys.argv[2]) / "sft_checkpoint", "000", kind="sft")
"""
POINTS = {
    "in_the_copy": "checkpoints.os.fsync",
    "before_the_folder_is_named": "shutil.move",
    "before_the_manifest": "checkpoints.write_manifest",
    "before_the_manifest_is_named": "Path.replace",
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_a_commit_that_is_killed_leaves_no_manifest_and_the_next_one_works(
    tmp_path: Path, source: Path, point: str
) -> None:
    store = UPath(tmp_path)
    kill(KILLED.format(point=point), source, tmp_path)
    assert list((tmp_path / "sft_checkpoint").glob("*.json")) == []
    with pytest.raises(ArtifactError, match="materialise it first"):
        current(store)
    manifest = commit(store, source)
    verify(manifest, LABEL)
    assert [path.name for path in (tmp_path / "sft_checkpoint" / "000").iterdir()] == [manifest.digest]


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_a_commit_that_is_killed_leaves_the_old_checkpoint_intact(tmp_path: Path, source: Path, point: str) -> None:
    old = commit(UPath(tmp_path), source)
    kill(KILLED.format(point=point), staged(source, WEIGHTS[::-1]), tmp_path)
    assert current(UPath(tmp_path)) == old
    verify(old, LABEL)


def test_what_a_killed_commit_of_other_weights_left_is_deleted(tmp_path: Path, source: Path) -> None:
    kill(KILLED.format(point="shutil.move"), source, tmp_path)
    folders = tmp_path / "sft_checkpoint" / "000"
    assert [path.name.endswith(".incoming") for path in folders.iterdir()] == [True]
    manifest = commit(UPath(tmp_path), staged(source, WEIGHTS[::-1]))
    assert [path.name for path in folders.iterdir()] == [manifest.digest]


def test_a_move_that_broke_off_on_an_object_store_is_mended_by_the_next_commit(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = UPath(f"memory://{tmp_path.name}")
    copy_file = store.fs.cp_file

    def breaks_off(one: str, other: str, **options: Any) -> None:
        if one.endswith("model.safetensors"):
            raise ConnectionError("the network is gone")
        copy_file(one, other, **options)

    monkeypatch.setattr(store.fs, "cp_file", breaks_off)  # there, a folder is moved file by file
    with pytest.raises(ConnectionError):
        commit(store, source)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="materialise it first"):
        current(store)
    verify(commit(store, source), LABEL)
    assert not list((store / "sft_checkpoint" / "000").glob(".*"))


# Stages that are left out


def test_a_checkpoint_that_is_passed_on_lies_where_its_parent_does(store: UPath, source: Path) -> None:
    parent = commit(store, source)
    passed = pass_on(parent, store / "dpo_checkpoint", "000", kind="dpo", settings={"passed_on": True})
    again = pass_on(passed, store / "sft_checkpoint", "001", kind="sft")
    for manifest in (passed, again):
        assert manifest.location == parent.location
        assert (manifest.digest, manifest.parent_digest) == (parent.digest, parent.digest)
        verify(manifest, LABEL)
        with local_folder(manifest) as folder:
            assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (passed.kind, passed.settings) == ("dpo", {"passed_on": True})
    assert [path.name for path in (store / "dpo_checkpoint").iterdir()] == ["000.json"], "nothing was copied"


def test_a_store_with_a_passed_on_checkpoint_can_be_moved(tmp_path: Path, source: Path) -> None:
    old, new = UPath(tmp_path / "old"), UPath(tmp_path / "new")
    pass_on(commit(old, source), old / "dpo_checkpoint", "000", kind="dpo")
    shutil.move(str(old), str(new))
    verify(read_manifest(manifest_path(new / "dpo_checkpoint", "000"), LABEL), LABEL)


def test_a_model_outside_the_store_is_passed_on_by_its_path(tmp_path: Path, source: Path) -> None:
    files = hash_folder(UPath(source))
    base = CheckpointManifest("base", str(source), "d", files)
    passed = pass_on(base, UPath(tmp_path / "store/sft_checkpoint"), "000", kind="sft")
    assert passed.location == str(source)
    verify(passed, LABEL)

import json
import shutil
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lance_dagster import records
from lance_dagster.construction.seeds.load import load_seed_instructions, load_seed_reviews
from lance_dagster.errors import SeedError
from lance_dagster_tests.construction.seed_files import (
    GOOD,
    REVIEW,
    SETTINGS,
    Row,
    load,
    load_reviews,
    only_quarantined,
    pairs,
    write_lines,
)

# Kinds of source


ROWS = [{"instruction": f"Count to {i}. 🧮", "response": f"… {i}"} for i in range(1, 6)]


def write_saved_data_set(folder: Path, rows: list[Row]) -> None:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(folder))


def write_every_kind(folder: Path, rows: list[Row]) -> None:
    write_lines(folder / "seed.jsonl", *rows)
    (folder / "list.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "data.JSON").write_text(json.dumps({"version": 1, "data": rows}), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), folder / "seed.parquet")
    write_saved_data_set(folder / "saved", rows)


@pytest.mark.parametrize("source", ["seed.jsonl", "list.json", "data.JSON", "seed.parquet", "saved"])
def test_every_kind_of_source_gives_the_same_rows(tmp_path: Path, source: str) -> None:
    write_every_kind(tmp_path, [*ROWS, {"instruction": "a\x00", "response": "b"}])
    loaded = load_seed_instructions(source, SETTINGS, tmp_path)

    assert loaded.rows.schema == records.SEED_INSTRUCTIONS
    assert pairs(loaded) == [(row["instruction"], row["response"]) for row in ROWS]
    assert loaded.rows["position"].to_pylist() == [0, 1, 2, 3, 4]
    assert set(loaded.rows["source"].to_pylist()) == {source}
    quarantined = only_quarantined(loaded)
    assert (quarantined["position"], quarantined["reason"]) == (5, "nul_byte")
    assert r"a\x00" in quarantined["excerpt"]


@pytest.mark.parametrize("source", ["seed.parquet", "saved"])
def test_conversations_come_through_arrow_and_a_null_counts_as_absent(tmp_path: Path, source: str) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    write_every_kind(tmp_path, [{"messages": chat, "prompt": None}, {"messages": None, "prompt": "Hi"}])
    loaded = load_seed_instructions(source, SETTINGS, tmp_path)
    assert pairs(loaded) == [("Hi", "Hello!")]
    assert only_quarantined(loaded)["detail"].startswith("the row has the fields prompt;")


def test_an_absolute_path_is_read_and_named_as_given(tmp_path: Path) -> None:
    write_lines(tmp_path / "seed.jsonl", GOOD)
    source = str(tmp_path / "seed.jsonl")
    assert load_seed_instructions(source, SETTINGS, Path("elsewhere")).rows["source"].to_pylist() == [source]


def test_blank_lines_are_no_rows_but_count_as_positions(tmp_path: Path) -> None:
    (tmp_path / "seed.jsonl").write_bytes(
        b'\xef\xbb\xbf{"prompt": "a", "response": "b"}\r\n\r\n   \n{"prompt": "c", "response": "d"}'
    )
    loaded = load_seed_instructions("seed.jsonl", SETTINGS, tmp_path)
    assert pairs(loaded) == [("a", "b"), ("c", "d")]
    assert loaded.rows["position"].to_pylist() == [0, 3]
    assert loaded.counts["read"] == 2


def test_seed_rows_survive_a_parquet_round_trip(tmp_path: Path) -> None:
    loaded = load(tmp_path, *ROWS)
    pq.write_table(loaded.rows, tmp_path / "again.parquet")
    again = load_seed_instructions("again.parquet", SETTINGS, tmp_path)
    assert again.rows.drop_columns("source").equals(loaded.rows.drop_columns("source"))


def test_parquet_positions_run_on_over_batches_and_row_groups(tmp_path: Path) -> None:
    rows = [{"instruction": f"Count to {i}.", "response": "no" if i != 2050 else ""} for i in range(2100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "seed.parquet", row_group_size=700)
    loaded = load_seed_instructions("seed.parquet", SETTINGS, tmp_path)
    assert only_quarantined(loaded)["position"] == 2050
    assert loaded.rows["position"].to_pylist() == [i for i in range(2100) if i != 2050]


def test_a_parquet_text_that_is_not_utf8_is_quarantined_alone(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"prompt": texts, "response": ["a", "b", "c"]}), tmp_path / "seed.parquet")
    loaded = load_seed_instructions("seed.parquet", SETTINGS, tmp_path)
    assert pairs(loaded) == [("good", "a"), ("fine", "c")]
    row = only_quarantined(loaded)
    assert (row["position"], row["reason"], row["excerpt"]) == (1, "not_utf8", r"caf\xe9")


def test_a_decimal_score_of_parquet_is_a_number(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**REVIEW, "score": Decimal("7.5")}]), tmp_path / "reviews.parquet")
    assert load_seed_reviews("reviews.parquet", SETTINGS, tmp_path).rows["score"].to_pylist() == [7.5]


# Sources that cannot be used


def refused(source: str, folder: Path) -> str:
    with pytest.raises(SeedError) as raised:
        load_seed_instructions(source, SETTINGS, folder)
    assert repr(source) in str(raised.value)
    return str(raised.value)


def test_a_missing_file_is_refused_with_the_place_that_was_looked_at(tmp_path: Path) -> None:
    message = refused("missing.jsonl", tmp_path)
    assert f"there is no file {tmp_path / 'missing.jsonl'}" in message
    assert "hf://owner/name[@split]" in message


@pytest.mark.parametrize("name", ["seed.csv", "seed", "seed.jsonl.gz"])
def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("instruction,response\n")
    assert "Give a .jsonl, .json or .parquet file" in refused(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("seed.json", b'[{"prompt": "a"', "one object per line to a .jsonl"),
        ("seed.json", b"\xff\xfe[]", "one object per line to a .jsonl"),
        ("seed.json", b"[" * 100_000, "one object per line to a .jsonl"),
        ("seed.json", b'{"rows": []}', 'neither a list of objects nor {"data": [...]}'),
        ("seed.parquet", b"PAR1 but not really", "cannot be read"),
        ("seed.json", b"[]", "is empty"),
        ("seed.jsonl", b"\n  \n", "is empty"),
    ],
)
def test_a_file_that_is_broken_as_a_whole_is_refused(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert why in refused(name, tmp_path)


def test_a_parquet_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "seed.parquet")
    whole = (tmp_path / "seed.parquet").read_bytes()
    (tmp_path / "seed.parquet").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refused("seed.parquet", tmp_path)


def test_a_source_without_a_good_row_is_refused_with_the_count_of_each_reason(tmp_path: Path) -> None:
    write_lines(tmp_path / "seed.jsonl", {"text": "x"}, b"{", {"title": "y"}, {"prompt": "a", "response": ""})
    message = refused("seed.jsonl", tmp_path)
    assert "none of its 4 rows is good" in message
    for part in ("missing_field 2 (", "not_json 1 (", "empty 1 (", "at position 0", "the row has the fields text"):
        assert part in message


def test_instructions_without_reviews_are_refused_as_review_seed(tmp_path: Path) -> None:
    with pytest.raises(SeedError, match="needed: instruction, response, rationale, score"):
        load_reviews(tmp_path, GOOD)


def test_a_folder_without_a_seed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds/README.md").write_text("no seed")
    assert "holds no seed file" in refused("seeds", tmp_path)


def test_a_folder_half_written_by_save_to_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds/state.json").write_text("{}")
    assert "was not written by save_to_disk" in refused("seeds", tmp_path)


def test_the_files_of_a_folder_are_read_in_the_order_of_their_names_and_positions_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "seeds"
    folder.mkdir()
    (folder / "b.json").write_text(json.dumps(ROWS[2:]), encoding="utf-8")
    write_lines(folder / "a.jsonl", *ROWS[:2])
    (folder / ".c.jsonl").write_text("{}")
    loaded = load_seed_instructions("seeds", SETTINGS, tmp_path)
    assert pairs(loaded) == [(row["instruction"], row["response"]) for row in ROWS]
    assert loaded.rows["position"].to_pylist() == [0, 1, 2, 3, 4]


def test_a_saved_folder_of_splits_is_refused_with_the_names_of_the_splits(tmp_path: Path) -> None:
    import datasets

    split = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "saved"))
    assert "'saved/<split>': test, train" in refused("saved", tmp_path)
    assert load_seed_instructions("saved/train", SETTINGS, tmp_path).counts["kept"] == len(ROWS)


@pytest.mark.parametrize("state", ["{}", "{", None])
def test_a_saved_folder_that_is_damaged_is_refused(tmp_path: Path, state: str | None) -> None:
    write_saved_data_set(tmp_path / "saved", ROWS)
    if state is None:
        next((tmp_path / "saved").glob("*.arrow")).unlink()
    else:
        (tmp_path / "saved" / "state.json").write_text(state)
    assert "Write it again with save_to_disk" in refused("saved", tmp_path)


# The hub: real `datasets`, offline, with a cache that a real builder wrote


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder and a `datasets` cache that holds acme/seeds with a train and a test split."""
    import datasets
    import huggingface_hub.constants
    from datasets.packaged_modules.json.json import Json

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_lines(tmp_path / "train.jsonl", *ROWS)
    write_lines(tmp_path / "test.jsonl", GOOD)
    files = {split: [str(tmp_path / f"{split}.jsonl")] for split in ("train", "test")}
    Json(
        cache_dir=str(tmp_path / "cache"), dataset_name="seeds", config_id="default", hash="0" * 16, data_files=files
    ).download_and_prepare()
    (tmp_path / "cache" / "seeds").rename(tmp_path / "cache" / "acme___seeds")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.mark.parametrize(
    ("source", "rows"),
    [("hf://acme/seeds", ROWS), ("hf://acme/seeds@test", [GOOD]), ("hf://acme/seeds@train[1:3]", ROWS[1:3])],
)
def test_a_hub_data_set_is_read_by_split_and_train_is_the_default(
    offline_hub: Path, source: str, rows: list[Row]
) -> None:
    loaded = load_seed_instructions(source, SETTINGS, offline_hub)
    assert pairs(loaded) == [(row["instruction"], row["response"]) for row in rows]
    assert set(loaded.rows["source"].to_pylist()) == {source}


def test_a_hub_data_set_that_is_not_cached_is_refused_offline_with_the_next_step(offline_hub: Path) -> None:
    message = refused("hf://acme/nothing", offline_hub)
    assert "unset it to download once" in message
    assert "local .jsonl or .parquet file" in message


def test_an_unknown_split_is_refused_and_named(offline_hub: Path) -> None:
    assert "the split 'validation' of acme/seeds" in refused("hf://acme/seeds@validation", offline_hub)


def test_a_folder_named_like_the_hub_data_set_is_not_read_in_its_place(offline_hub: Path) -> None:
    shutil.copytree(offline_hub.parent / "cache", offline_hub / "acme" / "seeds")
    assert "would be loaded in its place" in refused("hf://acme/seeds", offline_hub)


@pytest.mark.parametrize("source", ["hf://seeds", "hf:///a/b", "hf://a/b/c", "hf://a/b@", "s3://bucket/seed.jsonl"])
def test_an_address_of_another_form_is_refused(tmp_path: Path, source: str) -> None:
    assert "not of the form hf://owner/name[@split]" in refused(source, tmp_path)


@pytest.mark.parametrize(
    ("error", "next_step"),
    [("ConnectionError", "Check the network"), ("DatasetNotFoundError", "set HF_TOKEN"), ("ValueError", "@split")],
)
def test_a_hub_that_does_not_answer_is_refused_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, next_step: str
) -> None:
    """The hub itself cannot be made to fail on demand, so the call to it does."""
    import datasets

    kinds = {"ConnectionError": ConnectionError, "ValueError": ValueError}

    def fail(*_: object, **__: object) -> None:
        raise kinds.get(error, datasets.exceptions.DatasetNotFoundError)("no answer")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = refused("hf://acme/seeds", tmp_path)
    assert f"{error}: no answer" in message
    assert next_step in message

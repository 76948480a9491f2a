import json
import shutil
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lance_dagster import records
from lance_dagster.construction.seeds.load import SeedLoad, load_seed_instructions, load_seed_reviews
from lance_dagster.construction.seeds.quarantine import REASONS
from lance_dagster.errors import SeedError, SettingsError
from lance_dagster.settings import SeedSettings
from lance_dagster_tests.shared_data import shared_data

SETTINGS = SeedSettings(instructions="seed.jsonl", reviews="reviews.jsonl")
GOOD = {"instruction": "Name a colour.", "response": "Blue."}
REVIEW = {**GOOD, "rationale": "It is a colour.", "score": 9}
Row = dict[str, Any]


def write_lines(path: Path, *lines: object) -> None:
    """A JSONL file; bytes are written as they are, everything else as JSON."""
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))


def load(folder: Path, *lines: object, settings: SeedSettings = SETTINGS) -> SeedLoad:
    write_lines(folder / "seed.jsonl", *lines)
    return load_seed_instructions("seed.jsonl", settings, folder)


def load_reviews(folder: Path, *lines: object) -> SeedLoad:
    write_lines(folder / "reviews.jsonl", *lines)
    return load_seed_reviews("reviews.jsonl", SETTINGS, folder)


def pairs(loaded: SeedLoad) -> list[tuple[str, str]]:
    return list(zip(loaded.rows["instruction"].to_pylist(), loaded.rows["response"].to_pylist(), strict=True))


def only_quarantined(loaded: SeedLoad) -> Row:
    (row,) = loaded.quarantine.to_pylist()
    return dict(row)


# Reasons


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"instruction": "caf\xe9", "response": "x"}', "not_utf8", "0xe9"),
        (b'{"instruction": "\xed\xa0\x80", "response": "x"}', "not_utf8", "0xed"),
        (b'{"instruction": "a", "response"', "not_json", "line 1"),
        (b"[" * 100_000, "not_json", "recursion"),
        ([GOOD], "not_an_object", "list"),
        (None, "not_an_object", "NoneType"),
        ({"instruction": "a", "text": "b"}, "missing_field", "instruction, text"),
        ({}, "missing_field", "(none)"),
        ({"instruction": "a", "response": None}, "missing_field", "needed"),
        ({"instruction": "a", "response": 42}, "missing_field", "response is a int, not text"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "missing_field", "input is a list, not text"),
        ({"instruction": " \n\t ", "response": "b"}, "empty", "instruction is empty"),
        ({"instruction": "a", "response": ""}, "empty", "response is empty"),
        ({"instruction": "a\x00b", "response": "c"}, "nul_byte", "instruction contains U+0000 at character 1"),
        (b'{"instruction": "a", "response": "b\\ud83d"}', "lone_surrogate", "U+D83D at character 1"),
        ({"instruction": "w " * 4097, "response": "b"}, "over_long", "instruction has 4097 words"),
        ({"instruction": "a", "response": "w\n" * 4097}, "over_long", "response has 4097 words"),
        ({"instruction": "a <|im_start|> b", "response": "c"}, "control_token", "'<|im_start|>' at character 2"),
        ({"instruction": "a", "response": "b</s>"}, "control_token", "response contains '</s>'"),
        (GOOD, "duplicate", "position 0"),
    ],
)
def test_a_bad_line_is_quarantined_with_its_reason_and_the_rest_is_kept(
    tmp_path: Path, line: object, reason: str, detail: str
) -> None:
    other = {"instruction": "Name a fruit.", "response": "Plum."}
    loaded = load(tmp_path, GOOD, line, other)

    assert pairs(loaded) == [("Name a colour.", "Blue."), ("Name a fruit.", "Plum.")]
    assert loaded.rows["position"].to_pylist() == [0, 2]
    row = only_quarantined(loaded)
    assert (row["source"], row["position"], row["reason"]) == ("seed.jsonl", 1, reason)
    assert detail in row["detail"]
    assert {name: count for name, count in loaded.counts.items() if count} == {"read": 3, "kept": 2, reason: 1}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rationale": None}, "missing_field"),
        ({"rationale": 3}, "missing_field"),
        ({"score": None}, "missing_field"),
        ({"response": None}, "missing_field"),
        ({"rationale": "  "}, "empty"),
        ({"rationale": "a\x00"}, "nul_byte"),
        ({"rationale": "[INST] obey"}, "control_token"),
        ({"response": "w " * 4097}, "over_long"),
        ({"score": 10.01}, "bad_score"),
        ({"score": -1}, "bad_score"),
        ({"score": float("nan")}, "bad_score"),
        ({"score": float("inf")}, "bad_score"),
        ({"score": 10**400}, "bad_score"),
        ({"score": "7/10"}, "bad_score"),
        ({"score": ""}, "bad_score"),
        ({"score": True}, "bad_score"),
        ({"score": [7]}, "bad_score"),
        ({}, "duplicate"),
    ],
)
def test_a_bad_review_is_quarantined_with_its_reason(tmp_path: Path, fields: Row, reason: str) -> None:
    loaded = load_reviews(tmp_path, REVIEW, {**REVIEW, **fields})

    assert loaded.rows["position"].to_pylist() == [0]
    assert only_quarantined(loaded)["reason"] == reason
    assert loaded.counts[reason] == 1


def test_every_row_read_is_either_kept_or_counted_under_one_reason(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD, b"{", b"\xff", [], {}, {**GOOD, "response": ""}, GOOD, {**GOOD, "response": "Red."})

    assert loaded.counts["read"] == 8
    assert loaded.counts["kept"] == loaded.rows.num_rows == 2
    assert loaded.quarantine.num_rows == 6
    assert Counter(loaded.quarantine["reason"].to_pylist()) == Counter({r: loaded.counts[r] for r in REASONS})


def test_a_text_of_exactly_max_words_is_kept_and_the_limit_is_a_setting(tmp_path: Path) -> None:
    settings = SeedSettings(instructions="x", reviews="x", max_words=3)
    loaded = load(
        tmp_path,
        {"instruction": "one  two\nthree", "response": "yes"},
        {"instruction": "1 2 3 4", "response": "no"},
        settings=settings,
    )
    assert pairs(loaded) == [("one  two\nthree", "yes")]
    assert loaded.counts["over_long"] == 1


def test_a_long_rationale_is_kept(tmp_path: Path) -> None:
    assert load_reviews(tmp_path, {**REVIEW, "rationale": "w " * 5000}).counts["kept"] == 1


def test_control_tokens_are_a_setting(tmp_path: Path) -> None:
    settings = SeedSettings(instructions="x", reviews="x", control_tokens=("@@[a-z]+",))
    loaded = load(
        tmp_path,
        {"instruction": "keep </s>", "response": "yes"},
        {"instruction": "drop", "response": "@@end"},
        settings=settings,
    )
    assert pairs(loaded) == [("keep </s>", "yes")]
    assert "'@@end'" in only_quarantined(loaded)["detail"]


def test_a_control_token_pattern_that_does_not_compile_is_a_settings_error(tmp_path: Path) -> None:
    settings = SeedSettings(instructions="x", reviews="x", control_tokens=("[INST",))
    with pytest.raises(SettingsError, match=r"seed\.control_tokens: '\[INST' is not a regular expression"):
        load(tmp_path, GOOD, settings=settings)


def test_rows_that_differ_in_white_space_or_unicode_form_are_duplicates(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        {"instruction": "Translate: caf\u00e9", "response": "coffee  house"},
        {"instruction": " Translate:\n cafe\u0301 ", "response": "coffee house"},
    )
    assert pairs(loaded) == [("Translate: caf\u00e9", "coffee  house")]
    assert only_quarantined(loaded)["reason"] == "duplicate"


def test_rows_that_differ_in_case_or_in_the_response_are_no_duplicates(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD, {**GOOD, "response": "blue."}, {**GOOD, "response": "Red."})
    assert loaded.counts["kept"] == 3


def test_a_row_like_a_quarantined_one_is_no_duplicate_of_it(tmp_path: Path) -> None:
    loaded = load_reviews(tmp_path, {**REVIEW, "score": 11}, REVIEW)
    assert loaded.rows["position"].to_pylist() == [1]
    assert loaded.counts["duplicate"] == 0


def test_two_reviewers_who_disagree_are_both_kept(tmp_path: Path) -> None:
    loaded = load_reviews(tmp_path, REVIEW, {**REVIEW, "score": 3}, {**REVIEW, "rationale": "It is one word."})
    assert loaded.counts["kept"] == 3
    assert len(set(loaded.rows["seed_id"].to_pylist())) == 3


def test_an_excerpt_is_the_start_of_the_row_and_safe_to_store(tmp_path: Path) -> None:
    write_lines(tmp_path / "good.jsonl", GOOD)
    loaded = load(
        tmp_path,
        GOOD,
        b"\xff\x00" + b"a" * 500,
        b'{"instruction": "\\u0000 \\ud83d \\ud83d\\ude00", "response": "' + b"b" * 500 + b'"}',
        b'{"\\udc00": 1}',
    )
    broken, parsed, odd_name = loaded.quarantine.to_pylist()
    assert broken["excerpt"] == r"\xff\x00" + "a" * 195  # each undecodable byte is shown as four characters
    assert parsed["excerpt"].startswith(r'{"instruction": "\x00 \ud83d 😀", "response": "bbb')
    assert len(parsed["excerpt"]) < 210
    assert r"\udc00" in odd_name["detail"]
    assert loaded.quarantine.schema == records.SEED_QUARANTINE


# Layouts

HELLO = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
HELLO_CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


@pytest.mark.parametrize(
    ("row", "layout", "pair"),
    [
        ({"instruction": " Hi ", "response": "Hello!\n"}, "instruction_response", ("Hi", "Hello!")),
        ({"instruction": "Hi", "context": "A: B", "response": "C"}, "instruction_response", ("Hi\n\nA: B", "C")),
        ({"instruction": "Hi", "output": "Hello!"}, "alpaca", ("Hi", "Hello!")),
        ({"instruction": "Hi", "input": "", "output": "Hello!"}, "alpaca", ("Hi", "Hello!")),
        ({"instruction": "Hi", "input": None, "output": "Hello!"}, "alpaca", ("Hi", "Hello!")),
        ({"instruction": "Sum", "input": " 1, 2 ", "output": "3"}, "alpaca", ("Sum\n\n1, 2", "3")),
        (
            {"instruction": "Sum", "instances": [{"input": "1, 2", "output": "3"}], "is_classification": False},
            "self_instruct",
            ("Sum\n\n1, 2", "3"),
        ),
        ({"instruction": "Hi", "instances": [{"output": "Hello!"}]}, "self_instruct", ("Hi", "Hello!")),
        ({"conversations": HELLO}, "sharegpt", ("Hi", "Hello!")),
        ({"conversations": HELLO_CHAT}, "sharegpt", ("Hi", "Hello!")),
        ({"messages": HELLO_CHAT, "prompt": "Hi"}, "messages", ("Hi", "Hello!")),
        ({"prompt": "Hi", "response": "Hello!"}, "prompt_response", ("Hi", "Hello!")),
        ({"question": "Hi", "answer": "Hello!"}, "question_answer", ("Hi", "Hello!")),
    ],
)
def test_a_layout_is_recognised_by_its_fields(tmp_path: Path, row: Row, layout: str, pair: tuple[str, str]) -> None:
    loaded = load(tmp_path, row)
    assert pairs(loaded) == [pair]
    assert loaded.layout == layout
    assert loaded.counts["first_exchange_only"] == loaded.counts["system_message_left_out"] == 0


def test_a_file_of_several_layouts_names_them_all(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"prompt": "a", "response": "b"}, {"messages": HELLO_CHAT}, {"prompt": "c"})
    assert loaded.layout == "messages+prompt_response"
    assert only_quarantined(loaded)["reason"] == "missing_field"


def test_a_system_message_is_left_out_and_counted(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        {"messages": [{"role": "system", "content": "Be brief."}, *HELLO_CHAT]},
        {"system": "Be kind.", "instruction": "Who?", "output": "Me."},
        {"system": "Be just.", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        {"system": "", "instruction": "What?", "output": "That."},
    )
    assert pairs(loaded) == [("Hi", "Hello!"), ("Who?", "Me."), ("Why?", "So."), ("What?", "That.")]
    assert loaded.counts["system_message_left_out"] == 3
    assert loaded.counts["first_exchange_only"] == 0


def test_of_a_long_conversation_the_first_exchange_is_used_and_the_cut_is_counted(tmp_path: Path) -> None:
    more = [{"from": "human", "value": "Bye"}, {"from": "gpt", "value": "Goodbye."}]
    greeting = {"from": "gpt", "value": "How can I help?"}
    loaded = load(
        tmp_path,
        {"conversations": [{"from": "system", "value": "s"}, *HELLO, *more]},
        {"conversations": [greeting, *more]},
        {"conversations": [{"from": "human", "value": "One"}, {"from": "gpt", "value": "Two"}]},
        {"instruction": "Sum", "instances": [{"input": "1 1", "output": "2"}, {"input": "2 2", "output": "4"}]},
    )
    assert pairs(loaded) == [("Hi", "Hello!"), ("Bye", "Goodbye."), ("One", "Two"), ("Sum\n\n1 1", "2")]
    assert loaded.counts["first_exchange_only"] == 3
    assert loaded.counts["system_message_left_out"] == 1


@pytest.mark.parametrize(
    "row",
    [
        {"messages": []},
        {"messages": "Hi"},
        {"messages": ["Hi", "Hello!"]},
        {"messages": HELLO_CHAT[:1]},
        {"messages": HELLO_CHAT[::-1]},
        {"messages": [HELLO_CHAT[0], {"role": "tool", "content": "4"}]},
        {"messages": [HELLO_CHAT[0], {"role": "assistant", "content": None}]},
        {"instruction": "Sum", "instances": []},
        {"instruction": "Sum", "instances": [{"input": "1 1"}]},
    ],
)
def test_a_conversation_without_an_exchange_is_quarantined(tmp_path: Path, row: Row) -> None:
    assert only_quarantined(load(tmp_path, GOOD, row))["reason"] == "missing_field"


def test_reviews_are_read_with_their_score_as_a_number(tmp_path: Path) -> None:
    asked = {"question": "2 + 2?", "answer": "4", "rationale": " Right. ", "score": " 8.5 "}
    loaded = load_reviews(tmp_path, REVIEW, asked, {**REVIEW, "score": 0}, {**REVIEW, "score": "10"})
    assert loaded.rows.schema == records.SEED_REVIEWS
    assert loaded.rows["score"].to_pylist() == [9.0, 8.5, 0.0, 10.0]
    assert loaded.rows["rationale"].to_pylist()[1] == "Right."
    assert pairs(loaded)[1] == ("2 + 2?", "4")
    assert loaded.layout == "instruction_response+question_answer"


# Texts and ids


@pytest.mark.parametrize(
    "text",
    ["Grüße 👩‍👩‍👧 🇨🇭", "数独を解く", "שלום \u200f!", "e\u0301", "a\u2028b", r"\ud83d \n \x00"],
)
def test_texts_are_kept_to_the_letter(tmp_path: Path, text: str) -> None:
    escaped = json.dumps({"instruction": text, "response": "a"}).encode()
    literal = json.dumps({"instruction": text, "response": "b"}, ensure_ascii=False).encode()
    assert pairs(load(tmp_path, escaped, literal)) == [(text, "a"), (text, "b")]


def test_ids_depend_on_the_texts_alone(tmp_path: Path) -> None:
    first = load(tmp_path, GOOD, {"prompt": "a", "response": "b"}).rows["seed_id"].to_pylist()
    (tmp_path / "moved").mkdir()
    moved = load(tmp_path / "moved", {"question": " a", "answer": "b\n"}, b"", b"{", GOOD).rows["seed_id"].to_pylist()
    assert first == moved[::-1]
    assert first[0] == records.row_id("seed", GOOD["instruction"], GOOD["response"])


def test_a_score_has_one_id_however_it_is_written(tmp_path: Path) -> None:
    ids = {load_reviews(tmp_path, {**REVIEW, "score": s}).rows["seed_id"][0].as_py() for s in (9, 9.0, "9", "9.00")}
    assert ids == {records.row_id("review", GOOD["instruction"], GOOD["response"], "It is a colour.", 9.0)}


def test_loading_twice_gives_equal_tables(tmp_path: Path) -> None:
    lines = (GOOD, b"{", {"prompt": "a", "response": "b"}, GOOD)
    once, again = load(tmp_path, *lines), load(tmp_path, *lines)
    assert once.rows.equals(again.rows)
    assert once.quarantine.equals(again.quarantine)
    assert once.counts == again.counts


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
    write_every_kind(tmp_path, [{"messages": HELLO_CHAT, "prompt": None}, {"messages": None, "prompt": "Hi"}])
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


# Public files, where the checkout has them


def test_the_training_split_of_gsm8k_loads_whole() -> None:
    path = shared_data("gsm8k_train.jsonl")
    loaded = load_seed_instructions(path.name, SETTINGS, path.parent)
    assert loaded.counts["read"] == loaded.counts["kept"] == 7473
    assert loaded.layout == "question_answer"
    assert pairs(loaded)[0][0].startswith("Natalia sold clips")
    assert pairs(loaded)[0][1].endswith("#### 72")


def test_the_seed_tasks_of_self_instruct_load_whole_with_their_inputs() -> None:
    path = shared_data("self_instruct_seed_tasks.jsonl")
    loaded = load_seed_instructions(path.name, SETTINGS, path.parent)
    assert loaded.counts["read"] == loaded.counts["kept"] == 175
    assert loaded.layout == "self_instruct"
    assert pairs(loaded)[1][0] == "What is the relation between the given pairs?\n\nNight : Day :: Right : Left"

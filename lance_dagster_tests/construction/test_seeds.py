import json
from collections import Counter
from pathlib import Path

import pytest

from lance_dagster import records
from lance_dagster.construction.seeds.load import load_seed_instructions
from lance_dagster.construction.seeds.quarantine import REASONS
from lance_dagster.errors import SettingsError
from lance_dagster.settings import SeedSettings
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
from lance_dagster_tests.shared_data import shared_data

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

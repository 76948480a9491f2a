"""Filters that look at one row alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lance_dagster.construction.filters.rules import RULES, Generated, Rules
from lance_dagster.settings import FilterSettings
from lance_dagster_tests.shared_data import shared_data

SENTENCE = "The lake is deep and cold, and nobody swims in it before the end of June."


def rules(**changes: object) -> Rules:
    wide = {"instruction_words": (1, 100_000), "response_words": (1, 100_000)}
    return Rules(FilterSettings.model_validate({**wide, **changes}))


def response(text: str, prompt: str = "Tell me about the lake.", tokens: int = 20) -> Generated:
    return Generated("response", text, prompt, tokens)


def instruction(text: str, prompt: str = "Tell me about the lake.") -> Generated:
    return Generated("instruction", text, prompt, 20)


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_a_blank_text_is_empty(text: str) -> None:
    assert rules().objection(response(text)) == rules().objection(instruction(text)) == "empty"


@pytest.mark.parametrize("text", ["?", "…!", "😀", "+"])
def test_an_instruction_needs_a_letter_and_a_response_does_not(text: str) -> None:
    assert rules().objection(instruction(text)) == "empty"
    assert rules().objection(response(text)) is None


@pytest.mark.parametrize("text", ["a\x00b c", "caf\ufffd", "half \ud83d pair"])
def test_broken_characters(text: str) -> None:
    assert rules().objection(response(text)) == "broken_characters"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Show an Image.", True),
        ("Show images.", False),
        ("Please WRITE  a\nprogram", True),
        ("rewrite a programme", False),
        ("用图片说明", True),
        ("C++ is fine", True),
        ("C is fine", False),
    ],
)
def test_keywords_are_whole_words_where_words_stand_apart(text: str, found: bool) -> None:
    chosen = rules(keywords=["image", "write a program", "图片", "C++"])
    assert (chosen.objection(response(text)) == "keyword") == found


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but as a language model I cannot do this.",
        "Unfortunately, I am unable to open links.",
        "I cannot assist with this request.",
        "As an AI language model, I don't have opinions.",
        "  *Sorry*, I can not say.",
    ],
)
def test_refusals_are_dropped_if_so_set(text: str) -> None:
    assert rules(refusals="drop").objection(response(text)) == "refusal"
    assert rules().objection(response(text)) is None
    assert rules(refusals="drop").objection(instruction(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "Sorry is what one says.",
        "I can help with that.",
        "You cannot divide by zero.",
        "I'm sorry to hear that. Try rest.",
    ],
)
def test_what_only_begins_like_a_refusal_stays(text: str) -> None:
    assert rules(refusals="drop").objection(response(text)) is None


def test_an_echo_of_the_prompt_is_dropped() -> None:
    assert rules().objection(response("tell me about  THE lake")) == "echo"
    assert rules(echoes="keep").objection(response("tell me about  THE lake")) is None
    assert rules().objection(response("Tell me about the lake. It is deep.")) is None
    assert rules().objection(response("...", "...")) is None, "nothing but punctuation is no echo"


@pytest.mark.parametrize(
    "text",
    ["ha " * 16, f"{SENTENCE} " * 3, "no " + "=" * 201, "重复的句子。" * 12, " ".join(["1, 2, 3, 4,"] * 10)],
)
def test_repetitive_texts_are_dropped(text: str) -> None:
    assert rules().objection(response(text)) == "repetitive"
    assert rules(repeated_share=None, longest_character_run=None).objection(response(text)) is None


@pytest.mark.parametrize(
    "text", ["ha " * 15, f"{SENTENCE} But this is another one, {SENTENCE[:30]}", "-" * 200, " " * 500 + "x", SENTENCE]
)
def test_texts_that_repeat_little_stay(text: str) -> None:
    assert rules().objection(response(text)) is None


@pytest.mark.parametrize(
    ("text", "prompt", "dropped"),
    [
        ("这是一个答案", "What is it?", True),
        ("It is 河", "What is it?", False),
        ("Das heißt Größe", "What is it?", False),
        ("これはペンです", "这是什么", False),
        ("Это река", "What is it?", True),
        ("It is a river.", "这是什么", True),
        ("42", "What is it?", False),
        ("答案", "12 + 30?", False),
    ],
)
def test_a_drift_to_another_script_is_dropped_if_so_set(text: str, prompt: str, dropped: bool) -> None:
    assert (rules(other_script_share=0.3).objection(response(text, prompt)) == "other_script") == dropped
    assert rules().objection(response(text, prompt)) is None


def test_lengths_in_words_and_tokens() -> None:
    assert rules(response_words=(3, 4)).objection(response("a b")) == "response_too_short"
    assert rules(response_words=(3, 4)).objection(response("a b c d e")) == "response_too_long"
    assert rules(instruction_words=(3, 4)).objection(instruction("a b")) == "instruction_too_short"
    assert rules(response_tokens=(5, 9)).objection(response("a", tokens=4)) == "too_few_tokens"
    assert rules(response_tokens=(5, 9)).objection(response("a", tokens=10)) == "too_many_tokens"
    assert rules(response_tokens=(5, 9)).objection(response("a", tokens=9)) is None
    assert rules(response_tokens=(5, 9)).objection(instruction("a")) is None


@given(st.text(), st.text(), st.sampled_from(["instruction", "response", "flawed_response"]))
def test_every_rule_answers_for_every_text(text: str, prompt: str, kind: str) -> None:
    chosen = rules(other_script_share=0.1, refusals="drop", keywords=["image"])
    for rule in RULES:
        rule(chosen, Generated(kind, text, prompt, 5))


@pytest.mark.parametrize(
    "text", ["x" * 600_000, "word " * 100_000, "。" * 100_000, "I'm sorry " * 50_000, "a<|" * 100_000]
)
def test_huge_texts_are_answered_for(text: str) -> None:
    rules(other_script_share=0.1, refusals="drop", keywords=["image"]).objection(response(text))


def test_hardly_any_real_solution_is_called_degenerate() -> None:
    lines = shared_data("gsm8k_example_model_solutions.jsonl").read_text("utf-8").splitlines()
    chosen = rules(refusals="drop", other_script_share=0.3)
    reasons = []
    for line in lines:
        row = json.loads(line)
        texts = [row["ground_truth"], *(part["solution"] for part in row.values() if isinstance(part, dict))]
        reasons += [chosen.objection(response(text, row["question"])) for text in texts]
    assert len(reasons) > 5 * 1319 - 1
    assert sum(reason is not None for reason in reasons) < 0.01 * len(reasons)


def test_no_seed_task_of_self_instruct_is_called_degenerate() -> None:
    lines = shared_data("self_instruct_seed_tasks.jsonl").read_text("utf-8").splitlines()
    assert {rules(refusals="drop").objection(instruction(json.loads(line)["instruction"])) for line in lines} == {None}

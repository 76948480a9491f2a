from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lance_dagster.construction import acceptance, filter_stage, generate
from lance_dagster.construction.filters import contamination, rules
from lance_dagster.construction.ledger import build_ledger, funnel
from lance_dagster.engines.engine import Completion, failed
from lance_dagster.errors import ArtifactError
from lance_dagster.records import CANDIDATE_LEDGER, CANDIDATES, table_of
from lance_dagster_tests.construction.scripted import (
    FLAWED,
    HIGH,
    INSTRUCTION,
    LOW,
    PROMPT_SETS,
    RESPONSE,
    Row,
    bench,
    cut,
    evaluation_of,
    filters,
    of_kind,
    raw,
    seed,
)
from lance_dagster_tests.tiny import REPOSITORY

# Every drop reason


@dataclass(frozen=True)
class Case:
    """What it takes to see a drop reason: texts of the model, settings. ``at``: the dropped kind, and the step."""

    reason: str
    at: tuple[str, str]
    instructions: Sequence[str | Completion] = ()
    responses: Sequence[str | Completion] = ()
    flawed: Sequence[str | Completion] = ()
    construction: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    questions: Sequence[str] = ()
    prompts: str = "mini_v1"


LONG = " ".join("abcdefg")
CASES = [
    Case(generate.TRUNCATED, (INSTRUCTION, "generated"), instructions=[cut("Name a")]),
    Case(
        generate.FAILED,
        (INSTRUCTION, "generated"),
        instructions=[failed("refused", "not today")],
        engine={"max_failed_share": 0.9},
    ),
    Case(generate.CONTROL_TOKEN, (FLAWED, "generated"), flawed=["</s> worth 9"]),
    Case(generate.NO_ANSWER, (FLAWED, "generated"), flawed=[raw("no marker")], prompts="lance_v1"),
    Case(
        rules.TOO_SHORT_INSTRUCTION,
        (INSTRUCTION, "text"),
        instructions=["Go on"],
        construction=filters(instruction_words=[3, 60]),
    ),
    Case(
        rules.TOO_LONG_INSTRUCTION,
        (INSTRUCTION, "text"),
        instructions=[LONG],
        construction=filters(instruction_words=[1, 6]),
    ),
    Case(
        rules.TOO_SHORT_RESPONSE,
        (RESPONSE, "text"),
        responses=["worth 9"],
        construction=filters(response_words=[3, 60]),
    ),
    Case(rules.TOO_LONG_RESPONSE, (FLAWED, "text"), flawed=[LONG], construction=filters(response_words=[1, 6])),
    Case(rules.EMPTY, (INSTRUCTION, "text"), instructions=["?!…"]),
    Case(rules.BROKEN_CHARACTERS, (RESPONSE, "text"), responses=["It is \ufffd so. worth 9"]),
    Case(
        rules.TOO_FEW_TOKENS, (RESPONSE, "text"), responses=[raw("Yes")], construction=filters(response_tokens=[8, 99])
    ),
    Case(
        rules.TOO_MANY_TOKENS,
        (INSTRUCTION, "text"),
        instructions=[raw("Name a lake.")],
        construction=filters(instruction_tokens=[1, 6]),
    ),
    Case(
        rules.KEYWORD,
        (INSTRUCTION, "text"),
        instructions=["Draw an IMAGE of it."],
        construction=filters(keywords=["image"]),
    ),
    Case(
        rules.REFUSAL,
        (RESPONSE, "text"),
        responses=["I'm sorry, but I can't help with that. worth 9"],
        construction=filters(refusals="drop"),
    ),
    Case(rules.ECHO, (RESPONSE, "text"), instructions=["Name a lake, worth 9."], responses=["name a lake; worth 9"]),
    Case(rules.REPETITIVE, (FLAWED, "text"), flawed=["ha ha " * 12 + "worth 1"]),
    Case(
        rules.OTHER_SCRIPT,
        (RESPONSE, "text"),
        responses=["这是一个完全不同的答案, worth 9"],
        construction=filters(other_script_share=0.3),
    ),
    Case(filter_stage.PARENT_DROPPED, (RESPONSE, "duplicate"), instructions=[LOW["instruction"]]),
    Case(filter_stage.DUPLICATE, (RESPONSE, "duplicate"), responses=["The same. worth 9"] * 2),
    Case(filter_stage.SIMILAR, (INSTRUCTION, "rouge_l"), instructions=["Tell me about more ice."]),
    Case(
        contamination.CONTAMINATED,
        (INSTRUCTION, "contamination"),
        instructions=["What is 12 + 7?"],
        questions=["what is 12+7"],
    ),
    Case(acceptance.NO_REVIEW, (RESPONSE, "reward"), responses=["It is so. worth none"]),
    Case(acceptance.BELOW_ACCEPTANCE, (RESPONSE, "acceptance"), responses=["It is so. worth 8"]),
    Case(acceptance.NO_PREFERENCE_GAP, (FLAWED, "acceptance"), flawed=["It is so. worth 7"]),
    Case(acceptance.OVER_SEED_CAP, (RESPONSE, "acceptance"), construction={"max_rows_per_seed": 1}),
    Case(
        acceptance.OVER_ITERATION_CAP,
        (FLAWED, "acceptance"),
        flawed=["It is so. worth 1", "Something else entirely, worth 2"],
        construction={"max_rows_per_iteration": 1},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_a_row_is_dropped_for_this_reason_at_its_step(tmp_path: Path, case: Case) -> None:
    texts = {"instructions": case.instructions, "responses": case.responses, "flawed": case.flawed}
    rows = bench(tmp_path, case.prompts, construction=case.construction, engine=case.engine, **texts).ledger(  # type: ignore[arg-type]
        LOW, HIGH, questions=case.questions
    )
    dropped = [row for row in rows if row["drop_reason"] == case.reason]
    assert case.at in {(row["kind"], row["stage"]) for row in dropped}
    assert not any(row["kept"] for row in dropped)


def test_there_is_a_case_for_every_drop_reason() -> None:
    modules = [generate, rules, contamination, filter_stage, acceptance]
    reasons = {
        value
        for module in modules
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and not name.startswith("_")
    }
    assert reasons == {case.reason for case in CASES}


def test_every_drop_reason_is_explained_in_the_documentation() -> None:
    text = (REPOSITORY / "docs/filters.md").read_text(encoding="utf-8")
    assert [case.reason for case in CASES if f"`{case.reason}`" not in text] == []


# The table as a whole


@pytest.mark.parametrize("prompts", PROMPT_SETS)
def test_every_candidate_is_in_the_ledger_once_and_is_kept_or_has_a_reason(tmp_path: Path, prompts: str) -> None:
    made = bench(
        tmp_path,
        prompts,
        instructions=[cut("Name"), "Name a lake.", "Name a lake.", "What is 1 + 1?"],
        responses=["It is. worth 9", "It is. worth 9", "Maybe so. worth 2", cut("It")],
        flawed=["All wrong. worth 1", "Quite good, worth 9", cut("No"), "No idea. worth none"],
        construction={"samples": 4},
    )
    reviewed = made.review(LOW, HIGH, seed("fog", "none"))
    candidates = made.candidates(reviewed)
    table = build_ledger(made.context, *candidates, reviewed, evaluation_of(["What is 1 + 1?"])).rows
    assert table["row_id"].to_pylist() == pa.concat_tables(candidates)["row_id"].to_pylist()
    rows = table.to_pylist()
    assert len({row["row_id"] for row in rows}) == len(rows)
    assert all(row["kept"] == (row["drop_reason"] is None) for row in rows)
    assert {row["drop_reason"] for row in rows} >= {None, "truncated", "duplicate", "contaminated", "no_review"}


def test_the_numbers_of_the_funnel_add_up(tmp_path: Path) -> None:
    _, table = bench(
        tmp_path,
        instructions=[cut("Name"), "Name a lake."],
        responses=["It is. worth 9", "It is. worth 9"],
        flawed=["All wrong. worth 1", "No idea. worth none"],
    ).tables(LOW, HIGH)
    counts = funnel(table)
    assert counts == {
        "flawed_response/generated": 2,
        "flawed_response/kept": 1,
        "flawed_response/no_review": 1,
        "instruction/generated": 2,
        "instruction/kept": 1,
        "instruction/truncated": 1,
        "response/duplicate": 1,
        "response/generated": 2,
        "response/kept": 1,
    }
    for kind, generated in Counter(table["kind"].to_pylist()).items():
        fate = {name: count for name, count in counts.items() if name.startswith(f"{kind}/")}
        assert fate.pop(f"{kind}/generated") == generated == sum(fate.values())


@pytest.mark.parametrize("seeds", [(), (LOW,), (HIGH,)], ids=["none", "low", "high"])
def test_a_ledger_without_one_or_both_branches_has_the_right_schema(tmp_path: Path, seeds: Sequence[Row]) -> None:
    made = bench(tmp_path)
    _, table = made.tables(*seeds)
    assert table.schema.equals(CANDIDATE_LEDGER)
    assert (table.num_rows > 0) == bool(seeds)
    assert bool(funnel(table)) == bool(seeds)


@pytest.mark.parametrize("stale", ["gone", "moved"])
def test_candidates_of_another_reviewed_seed_are_refused(tmp_path: Path, stale: str) -> None:
    made = bench(tmp_path)
    candidates = made.candidates(made.review(LOW, HIGH))
    rewritten = made.review(LOW) if stale == "gone" else made.review(LOW, {**HIGH, "response": "fire, worth 2"})
    with pytest.raises(ArtifactError, match=f"{HIGH['seed_id']}.*Re-materialise instruction_candidates"):
        build_ledger(made.context, *candidates, rewritten, evaluation_of([]))


def test_empty_candidate_tables_are_accepted(tmp_path: Path) -> None:
    made = bench(tmp_path)
    empty = table_of([], CANDIDATES)
    table = build_ledger(made.context, empty, empty, made.review(HIGH), evaluation_of([])).rows
    assert table.num_rows == 0
    assert table.schema.equals(CANDIDATE_LEDGER)


# Steps


def test_rows_pass_all_steps_in_order_and_stage_names_the_last(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        instructions=["What is 1 + 1?", "Name a lake."],
        responses=[*["Two. worth 9"] * 2, *["Garda, worth 9"] * 2],
        construction=filters(instruction_words=[4, 60]),
    ).ledger(LOW, questions=["What is 1 + 1?", "Name a lake."])
    asked, short = of_kind(rows, INSTRUCTION)
    assert (asked["stage"], asked["drop_reason"]) == ("contamination", "contaminated")
    assert (short["stage"], short["drop_reason"]) == ("text", "instruction_too_short"), "text comes first"
    assert [(row["stage"], row["drop_reason"]) for row in of_kind(rows, RESPONSE)] == [
        ("contamination", "contaminated"),
        ("duplicate", "duplicate"),
        ("text", "parent_dropped"),
        ("text", "parent_dropped"),
    ]


def test_kept_rows_reached_the_last_step_of_their_kind(tmp_path: Path) -> None:
    rows = bench(tmp_path, flawed=["Not so. worth 1", "No. worth 4"]).ledger(LOW, HIGH)
    assert all(row["kept"] for row in rows)
    assert {(row["kind"], row["stage"]) for row in rows} == {
        (INSTRUCTION, "rouge_l"),
        (RESPONSE, "acceptance"),
        (FLAWED, "acceptance"),
    }


def test_only_what_the_cheap_steps_leave_is_reviewed(tmp_path: Path) -> None:
    made = bench(
        tmp_path,
        instructions=["What is 1 + 1?", "Name a lake."],
        responses=["Two. worth 9", "2, worth 9", "Garda, worth 9", "Garda, worth 9"],
        flawed=[cut("No"), "Not at all. worth 1"],
    )
    made.ledger(LOW, HIGH, questions=["What is 1 + 1?"])
    prompts = {request.messages[-1]["content"].split("Response: ")[1] for request in made.asked("review")}
    assert prompts == {LOW["response"], HIGH["response"], "Garda, worth 9", "Not at all. worth 1"}


@pytest.mark.parametrize(
    ("instruction", "stage"),
    [
        ("Go", "text"),
        (LOW["instruction"], "duplicate"),
        ("What is 1 + 1?", "contamination"),
        ("Tell me about more ice.", "rouge_l"),
    ],
)
def test_responses_go_with_their_dropped_instruction(tmp_path: Path, instruction: str, stage: str) -> None:
    rows = bench(
        tmp_path, instructions=[instruction, "Name a lake."], construction=filters(instruction_words=[2, 60])
    ).ledger(LOW, questions=["What is 1 + 1?"])
    dropped, kept = of_kind(rows, INSTRUCTION)
    assert (dropped["stage"], dropped["kept"], kept["kept"]) == (stage, False, True)
    for row in of_kind(rows, RESPONSE):
        orphan = row["parent_ids"] == [dropped["row_id"]]
        assert row["kept"] != orphan
        assert not orphan or row["stage"] == stage

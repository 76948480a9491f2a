import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lance_dagster.construction import acceptance, filter_stage, generate
from lance_dagster.construction.filters import contamination, rules
from lance_dagster.construction.filters.pool import extended_index
from lance_dagster.construction.ledger import build_ledger, funnel
from lance_dagster.engines.engine import Completion, failed
from lance_dagster.errors import ArtifactError
from lance_dagster.records import CANDIDATE_LEDGER, CANDIDATES, table_of
from lance_dagster.storage.tables import table_digest
from lance_dagster_tests.construction.scripted import PROMPT_SETS, Row, bench, cut, evaluation_of, raw, seed, unlike
from lance_dagster_tests.tiny import REPOSITORY

LOW, HIGH = seed("ice", "3"), seed("fire", "9")
OPEN = {"rouge_threshold": 1.0}  # ROUGE-L keeps everything but exact repetitions


def of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def fates(rows: Sequence[Row], kind: str) -> list[str | None]:
    return [row["drop_reason"] for row in of_kind(rows, kind)]


def filters(**changes: Any) -> dict[str, Any]:
    return {"filters": changes}


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


INSTRUCTION, RESPONSE, FLAWED = "instruction", "response", "flawed_response"
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


# Repetitions and similarity


def test_exact_repetitions_go_even_where_responses_are_not_compared(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        responses=["Yes, worth 9", "Yes,  worth\t9\n", "Yes, all of it, worth 9", "Yes, all of it, worth 9"],
        construction={**filters(rouge_responses=False), "samples": 4, "responses_per_instruction": 4},
    ).ledger(LOW)
    assert fates(rows, RESPONSE)[:4] == [None, "duplicate", None, "duplicate"]
    assert of_kind(rows, RESPONSE)[2]["rouge_l"] is None


def test_the_same_response_to_two_instructions_is_no_repetition(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        instructions=["Is water wet?", "Does it rain in autumn?"],
        responses=["Yes, worth 9", "Yes, worth 9"],
        construction={"responses_per_instruction": 1},
    ).ledger(LOW)
    assert fates(rows, RESPONSE) == [None, None]


def test_a_response_to_a_new_instruction_may_be_that_of_the_seed(tmp_path: Path) -> None:
    rows = bench(tmp_path, responses=[LOW["response"]], construction=filters(rouge_responses=False)).ledger(LOW)
    assert fates(rows, RESPONSE)[0] == "below_acceptance", "it was reviewed, which a repetition is not"


@pytest.mark.parametrize("text", [HIGH["response"], HIGH["response"].replace(" ", "\n  ")])
@pytest.mark.parametrize("compare", [True, False])
def test_a_flawed_response_that_repeats_the_original_is_dropped(tmp_path: Path, text: str, compare: bool) -> None:
    rows = bench(tmp_path, flawed=[text, "Not so. worth 1"], construction=filters(rouge_responses=compare)).ledger(HIGH)
    assert fates(rows, FLAWED) == ["duplicate", None]


def test_a_new_instruction_that_repeats_its_seed_is_dropped(tmp_path: Path) -> None:
    rows = bench(
        tmp_path, instructions=[f" {LOW['instruction']} ", "Name a lake."], construction=filters(**OPEN)
    ).ledger(LOW)
    assert fates(rows, INSTRUCTION) == ["duplicate", None]


def test_of_two_similar_rows_the_first_stays_and_the_other_names_it(tmp_path: Path) -> None:
    one, two = unlike(1, 10), unlike(1, 9)
    rows = bench(tmp_path, instructions=[one, two]).ledger(LOW)
    first, second = of_kind(rows, INSTRUCTION)
    assert (first["drop_reason"], second["drop_reason"]) == (None, "similar")
    assert second["rouge_l"] == pytest.approx(2 * 9 / 19)
    assert second["rouge_l_against"] == first["row_id"]


def test_a_similarity_equal_to_the_threshold_is_kept(tmp_path: Path) -> None:
    half = f"{unlike(1, 2)} {unlike(2, 2)}"
    rows = bench(
        tmp_path, instructions=[unlike(1, 4), half], construction=filters(rouge_threshold=0.5, rouge_recorded_above=0.4)
    ).ledger(LOW)
    assert of_kind(rows, INSTRUCTION)[1]["rouge_l"] == 0.5
    assert fates(rows, INSTRUCTION) == [None, None]


def test_a_dropped_row_is_not_what_later_rows_are_compared_with(tmp_path: Path) -> None:
    first, middle, last = "a b c d e f", "c d e f g h", "e f g h i j"
    rows = bench(
        tmp_path,
        instructions=[first, middle, last],
        construction={**filters(rouge_threshold=0.6), "samples": 3},
    ).ledger(LOW)
    assert fates(rows, INSTRUCTION) == [None, "similar", None]


@pytest.mark.parametrize(
    ("scope", "expected"), [("seed", [None] * 4), ("iteration", [None, None, "duplicate", "similar"])]
)
def test_the_scope_decides_whether_the_rows_of_another_seed_count(
    tmp_path: Path, scope: str, expected: list[str | None]
) -> None:
    rows = bench(
        tmp_path,
        instructions=[unlike(1), unlike(2), unlike(1), f"{unlike(2)} too"],
        construction=filters(rouge_scope=scope),
    ).ledger(LOW, seed("sea", "2"))
    assert fates(rows, INSTRUCTION) == expected


def test_the_statistic_any_drops_a_short_excerpt_that_f_keeps(tmp_path: Path) -> None:
    whole = {**seed("fire"), "response": f"{unlike(1, 30)} worth 9"}
    excerpt = f"{unlike(1, 6)} worth 1"
    made = {
        statistic: bench(
            tmp_path / statistic, flawed=[excerpt, "Not so. worth 2"], construction=filters(rouge_statistic=statistic)
        ).ledger(whole)
        for statistic in ("f", "any")
    }
    assert fates(made["f"], FLAWED)[0] is None
    assert fates(made["any"], FLAWED)[0] == "similar"


def test_text_without_latin_words_is_compared_for_repetition_only(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        instructions=["请介绍一条河流。", "请介绍一座山。", "请介绍一条河流。", "说明 ¿?…"],
        construction={"samples": 4},
    ).ledger(LOW)
    assert fates(rows, INSTRUCTION) == [None, None, "duplicate", None]
    assert of_kind(rows, INSTRUCTION)[1]["rouge_l"] is None
    assert of_kind(rows, INSTRUCTION)[1]["rouge_l_against"] is None


# Contamination


def test_of_a_contaminated_instruction_nothing_is_kept(tmp_path: Path) -> None:
    rows = bench(tmp_path, instructions=["What is 1+1", "Name a lake."]).ledger(LOW, questions=["WHAT IS 1 + 1 ?"])
    kept = {row["instruction"] for row in rows if row["kept"]}
    assert kept == {"Name a lake."}
    assert fates(rows, RESPONSE) == ["contaminated", "contaminated", None, None]


def test_flawed_responses_to_an_evaluation_question_in_the_seed_are_dropped(tmp_path: Path) -> None:
    rows = bench(tmp_path, flawed=["Not so. worth 1"]).ledger(HIGH, questions=[HIGH["instruction"]])
    assert fates(rows, FLAWED) == ["contaminated"] * 2


def test_the_contamination_filter_can_be_turned_off(tmp_path: Path) -> None:
    rows = bench(tmp_path, instructions=["What is 1 + 1?"], construction=filters(contamination="off")).ledger(
        LOW, questions=["What is 1 + 1?"]
    )
    assert fates(rows, INSTRUCTION) == [None, None]


# Acceptance


def test_sft_rows_need_more_than_the_acceptance_score(tmp_path: Path) -> None:
    rows = bench(
        tmp_path, responses=["One, worth 8", "Two, worth 8|8|9", "Three, worth 8.1", "Four, worth 10|7|none"]
    ).ledger(LOW)
    assert fates(rows, RESPONSE) == ["below_acceptance", None, None, None]


def test_acceptance_at_exactly_the_score_is_not_decided_by_rounding(tmp_path: Path) -> None:
    for score in ("0.7", "3.3", "7.1"):
        rows = bench(
            tmp_path / score, responses=[f"One, worth {score}"], construction={"accept_above": float(score)}
        ).ledger(LOW)
        assert fates(rows, RESPONSE)[0] == "below_acceptance", score


@pytest.mark.parametrize(("worth", "expected"), [("6|6|6", None), ("6|6|7", "no_preference_gap")])
def test_a_gap_of_exactly_two_is_no_gap_even_in_thirds(tmp_path: Path, worth: str, expected: str | None) -> None:
    """25/3 - 19/3 is 2.000000000000001 in floating point."""
    rows = bench(tmp_path, flawed=[f"Not so. worth {worth}"], construction={"samples": 1}).ledger(seed("fire", "8|8|9"))
    assert fates(rows, FLAWED) == [expected]


def test_a_flawed_response_that_outscores_the_original_is_kept(tmp_path: Path) -> None:
    (row,) = bench(tmp_path, flawed=["Better, worth 10"], construction={"samples": 1}).ledger(seed("fire", "7"))
    assert row["kept"]
    assert (row["original_score"], row["score"]) == (7.0, 10.0)


def test_a_flawed_response_as_good_as_the_original_forms_no_pair(tmp_path: Path) -> None:
    rows = bench(tmp_path, flawed=["Just as good, worth 9", "Not so. worth 1"]).ledger(HIGH)
    good, bad = of_kind(rows, FLAWED)
    assert (good["drop_reason"], bad["drop_reason"]) == (None, None), "both it and the original beat the worst one"
    rows = bench(tmp_path / "alone", flawed=["Just as good, worth 9"], construction={"samples": 1}).ledger(HIGH)
    assert fates(rows, FLAWED) == ["no_preference_gap"]


def test_of_equally_bad_flawed_responses_the_first_is_the_rejected_one(tmp_path: Path) -> None:
    rows = bench(tmp_path, flawed=["Not so. worth 1", "Nor that. worth 1"]).ledger(HIGH)
    assert fates(rows, FLAWED) == [None, "no_preference_gap"]


def test_a_flawed_response_without_a_review_is_dropped_and_is_not_the_worst(tmp_path: Path) -> None:
    rows = bench(
        tmp_path, flawed=["Unread, worth none", "Not so. worth cut", "Bad. worth 1"], construction={"samples": 3}
    ).ledger(HIGH)
    assert fates(rows, FLAWED) == ["no_review", "no_review", None]
    assert [row["score"] for row in rows] == [None, None, 1.0]
    assert rows[0]["scores"] == [None, None, None]


# Caps


def test_the_seed_cap_keeps_the_best_responses_of_each_seed(tmp_path: Path) -> None:
    worths = ["8.5", "9.5", "9", "10"]
    rows = bench(
        tmp_path,
        responses=[f"{unlike(i)} worth {worths[i % 4]}" for i in range(8)],
        construction={"max_rows_per_seed": 2},
    ).ledger(LOW, seed("sea", "2"))
    assert fates(rows, RESPONSE) == ["over_seed_cap", None, "over_seed_cap", None] * 2


def test_the_iteration_cap_keeps_the_best_responses_and_the_earlier_of_equals(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        responses=[f"{unlike(i)} worth {worth}" for i, worth in enumerate(["9", "8.5", "9", "9"])],
        construction={"max_rows_per_iteration": 2},
    ).ledger(LOW)
    assert fates(rows, RESPONSE) == [None, "over_iteration_cap", None, "over_iteration_cap"]


def test_rows_over_the_seed_cap_leave_room_under_the_iteration_cap(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        responses=[f"{unlike(i)} worth {10 if i < 4 else 9}" for i in range(8)],
        construction={"max_rows_per_seed": 1, "max_rows_per_iteration": 2},
    ).ledger(LOW, seed("sea", "2"))
    assert [i for i, fate in enumerate(fates(rows, RESPONSE)) if fate is None] == [0, 4]


def test_the_cap_on_flawed_responses_keeps_the_largest_differences(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        flawed=["One. worth 5", "Two. worth 1", "Three. worth 4"],
        construction={"samples": 3, "max_rows_per_seed": 1},
    ).ledger(HIGH)
    assert fates(rows, FLAWED) == ["over_seed_cap", None, "over_seed_cap"]
    assert {row["stage"] for row in rows} == {"acceptance"}


def test_the_caps_count_each_kind_by_itself(tmp_path: Path) -> None:
    rows = bench(tmp_path, flawed=["One. worth 1", "Two. worth 2"], construction={"max_rows_per_iteration": 1}).ledger(
        LOW, HIGH
    )
    kept = Counter(row["kind"] for row in rows if row["kept"])
    assert kept == {INSTRUCTION: 2, RESPONSE: 1, FLAWED: 1}


def test_empty_candidate_tables_are_accepted(tmp_path: Path) -> None:
    made = bench(tmp_path)
    empty = table_of([], CANDIDATES)
    table = build_ledger(made.context, empty, empty, made.review(HIGH), evaluation_of([])).rows
    assert table.num_rows == 0
    assert table.schema.equals(CANDIDATE_LEDGER)


def test_a_run_of_words_in_a_response_drops_that_response_alone(tmp_path: Path) -> None:
    quoted = " ".join(f"w{i}" for i in range(13))
    made = bench(tmp_path, instructions=["Name a lake.", "Name a river."], responses=[f"So: {quoted}, worth 9"])
    _, ledger = made.made(LOW, questions=[f"start {quoted} end"])
    assert fates(ledger.rows.to_pylist(), RESPONSE) == ["contaminated", None, None, None]
    (hit,) = ledger.hits.to_pylist()
    assert (hit["row_id"], hit["part"], hit["task"]) == (
        of_kind(ledger.rows.to_pylist(), RESPONSE)[0]["row_id"],
        "response",
        "exam",
    )
    assert hit["words"] == quoted
    assert not hit["whole"]


@pytest.mark.parametrize(("mode", "kept"), [("drop", False), ("flag", True), ("off", True)])
def test_contaminated_rows_are_dropped_flagged_or_not_looked_for(tmp_path: Path, mode: str, kept: bool) -> None:
    made = bench(tmp_path, instructions=["What is 1+1", "Name a lake."], construction=filters(contamination=mode))
    _, ledger = made.made(LOW, questions=["WHAT IS 1 + 1 ?"])
    row = of_kind(ledger.rows.to_pylist(), INSTRUCTION)[0]
    assert row["kept"] == kept
    assert row["contaminated"] == (None if mode == "off" else True)
    assert len(ledger.hits) == (0 if mode == "off" else 3), "the instruction and its two responses"


# All iterations


def kept_instructions(made: pa.Table) -> list[str]:
    return [row["instruction"] for row in made.to_pylist() if row["kind"] == "instruction" and row["kept"]]


def test_with_the_scope_all_an_instruction_of_an_earlier_iteration_counts(tmp_path: Path) -> None:
    scope = filters(rouge_scope="all")
    first = bench(tmp_path / "0", instructions=[unlike(1), unlike(2)], construction=scope)
    _, before = first.made(LOW)
    chosen = first.context.settings.construction.filters
    index = extended_index(None, before.rows, chosen)
    later = bench(
        tmp_path / "1",
        iteration=1,
        instructions=[unlike(1), f"{unlike(2)} too", unlike(3), "Tell me about more sea."],
        construction={**scope, "samples": 2},
    )
    _, ledger = later.made(LOW, seed("sea", "2"), earlier=index)
    assert fates(ledger.rows.to_pylist(), INSTRUCTION) == ["duplicate", "similar", None, "similar"]
    assert of_kind(ledger.rows.to_pylist(), INSTRUCTION)[1]["rouge_l_against"] == index["row_id"][1].as_py()
    grown = extended_index(index, ledger.rows, chosen)
    assert grown.num_rows == index.num_rows + 1
    assert grown["iteration"].to_pylist() == [0, 0, 1]
    assert table_digest(grown) != table_digest(index), "the next iteration names it by its digest"


def test_with_the_scope_all_a_flawed_response_is_compared_with_those_of_earlier_iterations(tmp_path: Path) -> None:
    scope = filters(rouge_scope="all")
    first = bench(tmp_path / "0", flawed=[f"{unlike(1)} worth 1", f"{unlike(2)} worth 1"], construction=scope)
    _, before = first.made(HIGH, seed("sun", "9"))
    index = extended_index(None, before.rows, first.context.settings.construction.filters)
    assert set(index["kind"].to_pylist()) == {"flawed_response"}
    later = bench(
        tmp_path / "1", iteration=1, flawed=[f"{unlike(1)} worth 1", f"{unlike(9)} worth 1"], construction=scope
    )
    _, ledger = later.made(HIGH, earlier=index)
    assert fates(ledger.rows.to_pylist(), FLAWED) == ["duplicate", None]


def test_the_index_gives_the_decisions_that_all_texts_at_once_would_give(tmp_path: Path) -> None:
    rng = random.Random(4)
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(rng.choice(words) for _ in range(8)) for _ in range(12)]
    texts += [f"{rng.choice(texts)} more" for _ in range(20)]
    rng.shuffle(texts)
    scope = {**filters(rouge_scope="all", rouge_threshold=0.6), "samples": 8}
    whole = bench(tmp_path / "whole", instructions=texts, construction={**scope, "samples": 32}).made(LOW)[1].rows
    index, apart = None, []
    for i in range(4):
        part = bench(tmp_path / str(i), iteration=i, instructions=texts[8 * i : 8 * i + 8], construction=scope)
        rows = part.made(LOW, earlier=index)[1].rows
        apart += kept_instructions(rows)
        index = extended_index(index, rows, part.context.settings.construction.filters)
    assert apart == kept_instructions(whole)
    assert 2 < len(apart) < 30


def test_an_index_of_other_words_is_refused(tmp_path: Path) -> None:
    first = bench(tmp_path / "0", instructions=[unlike(1), unlike(2)])
    index = extended_index(None, first.made(LOW)[1].rows, first.context.settings.construction.filters)
    later = bench(tmp_path / "1", iteration=1, construction=filters(rouge_scope="all", rouge_words="unicode"))
    with pytest.raises(ArtifactError, match=r"rouge_score words.*unicode words.*re-materialise candidate_ledger"):
        later.made(LOW, earlier=index)


# Repetitions up to case and punctuation


@pytest.mark.parametrize(("duplicates", "fate"), [("exact", None), ("normalised", "duplicate")])
def test_texts_that_differ_in_case_and_punctuation_repeat_each_other_if_so_set(
    tmp_path: Path, duplicates: str, fate: str | None
) -> None:
    rows = bench(
        tmp_path,
        responses=["Yes, it is. worth 9", "yes it is worth 9"],
        construction=filters(duplicates=duplicates, rouge_responses=False),
    ).ledger(LOW)
    assert fates(rows, RESPONSE)[:2] == [None, fate]


def test_texts_that_the_words_of_rouge_score_overlook_are_counted(tmp_path: Path) -> None:
    def unseen(words: str) -> int:
        made = bench(
            tmp_path / words, instructions=["请介绍一条河流。", "Name a lake."], construction=filters(rouge_words=words)
        )
        return made.made(LOW)[1].unseen

    assert (unseen("rouge_score"), unseen("unicode")) == (1, 0)

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lance_dagster.construction import generate, ledger
from lance_dagster.construction.filters import contamination, rules
from lance_dagster.construction.filters.contamination import EvaluationQuestions
from lance_dagster.construction.ledger import build_ledger, funnel
from lance_dagster.engines.engine import Completion, failed
from lance_dagster.errors import ArtifactError
from lance_dagster.records import CANDIDATE_LEDGER, CANDIDATES, table_of
from lance_dagster_tests.construction.scripted import PROMPT_SETS, Row, bench, cut, raw, seed, unlike

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
        (INSTRUCTION, "length"),
        instructions=["Go on"],
        construction=filters(instruction_words=[3, 60]),
    ),
    Case(
        rules.TOO_LONG_INSTRUCTION,
        (INSTRUCTION, "length"),
        instructions=[LONG],
        construction=filters(instruction_words=[1, 6]),
    ),
    Case(
        rules.TOO_SHORT_RESPONSE,
        (RESPONSE, "length"),
        responses=["worth 9"],
        construction=filters(response_words=[3, 60]),
    ),
    Case(rules.TOO_LONG_RESPONSE, (FLAWED, "length"), flawed=[LONG], construction=filters(response_words=[1, 6])),
    Case(ledger.PARENT_DROPPED, (RESPONSE, "rouge_l"), instructions=[LOW["instruction"]]),
    Case(ledger.DUPLICATE, (RESPONSE, "rouge_l"), responses=["The same. worth 9"] * 2),
    Case(ledger.SIMILAR, (INSTRUCTION, "rouge_l"), instructions=["Tell me about more ice."]),
    Case(
        contamination.CONTAMINATED,
        (INSTRUCTION, "contamination"),
        instructions=["What is 12 + 7?"],
        questions=["what is 12+7"],
    ),
    Case(ledger.NO_REVIEW, (RESPONSE, "reward"), responses=["It is so. worth none"]),
    Case(ledger.BELOW_ACCEPTANCE, (RESPONSE, "acceptance"), responses=["It is so. worth 8"]),
    Case(ledger.NO_PREFERENCE_GAP, (FLAWED, "acceptance"), flawed=["It is so. worth 7"]),
    Case(ledger.OVER_SEED_CAP, (RESPONSE, "acceptance"), construction={"max_rows_per_seed": 1}),
    Case(
        ledger.OVER_ITERATION_CAP,
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
    modules = [generate, rules, contamination, ledger]
    reasons = {
        value
        for module in modules
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and not name.startswith("_")
    }
    assert reasons == {case.reason for case in CASES}


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
    table = build_ledger(made.context, *candidates, reviewed, EvaluationQuestions(["What is 1 + 1?"]))
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
        build_ledger(made.context, *candidates, rewritten, EvaluationQuestions([]))


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
    assert (short["stage"], short["drop_reason"]) == ("length", "instruction_too_short"), "length comes first"
    assert [(row["stage"], row["drop_reason"]) for row in of_kind(rows, RESPONSE)] == [
        ("contamination", "contaminated"),
        ("rouge_l", "duplicate"),
        ("length", "parent_dropped"),
        ("length", "parent_dropped"),
    ]


def test_kept_rows_reached_the_last_step_of_their_kind(tmp_path: Path) -> None:
    rows = bench(tmp_path, flawed=["Not so. worth 1", "No. worth 4"]).ledger(LOW, HIGH)
    assert all(row["kept"] for row in rows)
    assert {(row["kind"], row["stage"]) for row in rows} == {
        (INSTRUCTION, "contamination"),
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
    ("instruction", "stage"), [("Go", "length"), (LOW["instruction"], "rouge_l"), ("What is 1 + 1?", "contamination")]
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
    rows = bench(tmp_path, instructions=[unlike(1, 4), half], construction=filters(rouge_threshold=0.5)).ledger(LOW)
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
        instructions=["请介绍一条河流。", "请介绍一座山。", "请介绍一条河流。", "¿?…"],
        construction={"samples": 4},
    ).ledger(LOW)
    assert fates(rows, INSTRUCTION) == [None, None, "duplicate", None]
    assert of_kind(rows, INSTRUCTION)[1]["rouge_l"] == 0.0
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
    table = build_ledger(made.context, empty, empty, made.review(HIGH), EvaluationQuestions([]))
    assert table.num_rows == 0
    assert table.schema.equals(CANDIDATE_LEDGER)

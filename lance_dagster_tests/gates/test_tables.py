"""Gates on tables: each passes what is healthy and fails what is not."""

from __future__ import annotations

import pyarrow as pa
import pytest

from lance_dagster.construction.filters.contamination import EvaluationIndex, EvaluationText
from lance_dagster.gates import tables


def reviewed(scores: list[list[float | None]]) -> pa.Table:
    means = [
        sum(found) / len(found) if (found := [value for value in row if value is not None]) else None for row in scores
    ]
    return pa.table(
        {"scores": pa.array(scores, pa.list_(pa.float64())), "score": pa.array(means, pa.float64())},
    )


def pairs(*sides: tuple[str, str]) -> pa.Table:
    return pa.table(
        {
            "row_id": [f"pair{i}" for i in range(len(sides))],
            "chosen": [chosen for chosen, _ in sides],
            "rejected": [rejected for _, rejected in sides],
        }
    )


def test_reviews_that_do_not_parse_are_counted_against_all_samples() -> None:
    verdict = tables.reviews_parse(reviewed([[8.0, None], [None, None]]), 0.5)
    assert not verdict.passed and verdict.figures == {"reviews": 4, "parsed_share": 0.25}
    assert tables.reviews_parse(reviewed([[8.0, None], [3.0, 4.0]]), 0.75).passed


def test_a_table_without_reviews_has_none_that_fail_to_parse() -> None:
    assert tables.reviews_parse(reviewed([[], []]), 0.9).passed


def test_a_judge_that_scores_everything_alike_is_noticed() -> None:
    assert not tables.score_spread(reviewed([[8.0], [8.0], [8.0]]), 0.25).passed
    verdict = tables.score_spread(reviewed([[2.0], [8.0], [None]]), 0.25)
    assert verdict.passed and verdict.figures["rows"] == 2 and verdict.figures["standard_deviation"] == 3.0


@pytest.mark.parametrize(("kept", "passes"), [(0, False), (1, True), (9, True), (10, False)])
def test_the_kept_share_must_lie_in_its_band(kept: int, passes: bool) -> None:
    ledger = pa.table({"kept": [index < kept for index in range(10)]})
    assert tables.kept_share(ledger, (0.1, 0.9)).passed is passes


def test_an_iteration_that_generated_nothing_does_not_pass() -> None:
    assert not tables.kept_share(pa.table({"kept": pa.array([], pa.bool_())}), (0.0, 1.0)).passed


def test_a_prompt_of_the_evaluation_is_found_however_it_is_written() -> None:
    questions = EvaluationIndex([EvaluationText("sums", 0, "question", "What is 12 + 7?")])
    leaked = tables.no_evaluation_item(pa.table({"prompt": ["Name a fruit.", "what is 12+7"]}), "prompt", questions)
    assert not leaked.passed and leaked.figures["in_evaluation"] == 1 and "what is 12+7" in leaked.explanation
    assert tables.no_evaluation_item(pa.table({"prompt": ["What is 12 - 7?"]}), "prompt", questions).passed


def test_rows_that_were_compared_with_nothing_do_not_pass() -> None:
    verdict = tables.no_evaluation_item(pa.table({"prompt": ["a"]}), "prompt", EvaluationIndex())
    assert not verdict.passed and "no text to compare" in verdict.explanation


def test_a_pair_of_the_same_text_is_named() -> None:
    verdict = tables.sides_differ(pairs(("a b", "a c"), ("x y", "x  y ")))
    assert not verdict.passed and "pair1" in verdict.explanation
    assert tables.sides_differ(pairs(("a b", "a c"))).passed


@pytest.mark.parametrize(("chosen", "passes"), [("a", False), ("a b", True), ("a b c d", True), ("a b c d e", False)])
def test_one_side_that_is_much_longer_is_noticed_in_both_directions(chosen: str, passes: bool) -> None:
    verdict = tables.length_gap(pairs((chosen, "one two three")), 1.5)
    assert verdict.passed is passes, verdict.explanation

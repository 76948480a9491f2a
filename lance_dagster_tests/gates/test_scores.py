"""Gates on scores: complete and comparable, and not worse by more standard errors than the settings allow."""

from __future__ import annotations

import pytest

from lance_dagster.gates import scores
from lance_dagster.report.scores import BASELINE_STAGES, LOOP_STAGES, score_rows
from lance_dagster_tests.report.tables import after, baseline, score_table
from lance_dagster_tests.report.tables import scores as rows_of

BASELINE = baseline(0.9, 0.5, 0.52)


def test_scores_of_all_stages_on_the_documents_of_the_baseline_are_complete() -> None:
    verdict = scores.scores_complete(BASELINE, [(0, after(0, 0.6, 0.7))], LOOP_STAGES)
    assert verdict.passed, verdict.explanation
    assert verdict.figures == {"scores": 2, "documents": 200}
    assert scores.scores_complete(BASELINE, [], BASELINE_STAGES).passed


def test_a_missing_stage_a_missing_task_other_documents_and_a_score_out_of_range_do_not_pass() -> None:
    only_sft = score_table(rows_of("sft", {"mini_test": 0.6}, 0))
    verdict = scores.scores_complete(BASELINE, [(0, only_sft)], LOOP_STAGES)
    assert not verdict.passed and "stage dpo" in verdict.explanation
    for wrong in (
        after(0, 0.6, 0.7, task="other_test"),
        after(0, 0.6, 0.7, documents=99),
        after(0, 0.6, 1.7),
        after(0, 0.6, float("nan")),
    ):
        assert not scores.scores_complete(BASELINE, [(0, wrong)], LOOP_STAGES).passed


@pytest.mark.parametrize(("value", "passes"), [(0.42, True), (0.41, False), (0.9, True)])
def test_a_drop_is_measured_in_standard_errors_of_the_difference(value: float, passes: bool) -> None:
    rows, floor = score_rows(BASELINE, [(0, after(0, 0.5, value))])
    verdict = scores.not_worse(rows[-1], rows[1], floor, 2.0)  # sqrt(2) * 0.03, twice: 0.085
    assert verdict.passed is passes, verdict.explanation
    assert verdict.figures["standard_errors"] == pytest.approx((value - 0.5) / (2**0.5 * 0.03))


def test_without_a_standard_error_the_noise_floor_takes_its_place() -> None:
    rows, floor = score_rows(BASELINE, [(0, after(0, 0.5, (0.45, None)))])
    assert not scores.not_worse(rows[-1], rows[1], floor, 2.0).passed  # floor 0.02
    assert scores.not_worse(rows[-1], rows[1], floor, 3.0).passed

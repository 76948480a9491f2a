"""Gates on evaluation scores: all there and comparable, and not worse than before, in standard errors."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from lance_dagster.errors import EvaluationError
from lance_dagster.gates.verdict import Verdict
from lance_dagster.report.scores import Change, ScoreRow, compare, score_rows


def scores_complete(baseline: pa.Table, iterations: Sequence[tuple[int, pa.Table]], stages: Sequence[str]) -> Verdict:
    """Every stage of every iteration has every task of the baseline on the same documents, each a share in 0..1.

    Schema EVAL_SCORES. With no ``iterations`` the baseline itself is looked at.
    """
    try:
        rows, _ = score_rows(baseline, iterations)
    except EvaluationError as error:
        return Verdict(False, str(error))
    judged = [row for row in rows if row.stage in stages]
    missing = sorted(set(stages) - {row.stage for row in judged})
    if missing:
        return Verdict(False, f"there are no scores of stage {', '.join(missing)}; materialise them again")
    scores = sum(len(row.tasks) for row in judged)
    return Verdict(
        True,
        f"{', '.join(row.label for row in judged)}: {scores} scores, all in 0..1, on the same documents",
        {"scores": scores, "documents": sum(row.documents for row in judged)},
    )


def not_worse(own: ScoreRow, other: ScoreRow, noise_floor: float | None, most: float) -> Verdict:
    """``own`` is at most ``most`` standard errors of the difference below ``other``.

    Where a standard error is unknown, the noise floor stands in for it; where that is unknown too, any drop counts.
    """
    floor = noise_floor or 0.0
    change = compare(own, other, floor)
    error = change.stderr if change.stderr is not None else floor
    figures = {"difference": change.value, "own": own.mean, "other": other.mean}
    if error:
        figures["standard_errors"] = change.value / error
    return Verdict(change.value >= -most * error, _sentence(own, other, change, error, most), figures)


def _sentence(own: ScoreRow, other: ScoreRow, change: Change, error: float, most: float) -> str:
    measured = f"{100 * change.value:+.1f} ± {100 * error:.1f} points"
    return f"{own.label} against {other.label}: {measured}; a drop of {most:g} standard errors is let pass"

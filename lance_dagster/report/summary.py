"""Everything that a report says about one experiment, computed from its tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from lance_dagster.errors import EvaluationError
from lance_dagster.report.costs import IterationCost
from lance_dagster.report.funnel import Funnel, build_funnel
from lance_dagster.report.headline import headline
from lance_dagster.report.samples import Samples, pick_samples
from lance_dagster.report.scores import ScoreRow, score_rows


@dataclass(frozen=True)
class IterationTables:
    """The tables of one evaluated iteration; their schemas are those of the same names in records.py."""

    iteration: int
    reviewed_seed: pa.Table
    candidate_ledger: pa.Table
    sft_set: pa.Table
    preference_set: pa.Table
    eval_scores: pa.Table
    drift: pa.Table


@dataclass(frozen=True)
class DriftRow:
    """How far an iteration's model is from another one; units as in records.DRIFT."""

    iteration: int
    against: str
    kl: float
    weight_distance: float
    response_nll: float


@dataclass(frozen=True)
class Summary:
    """The figures of a report. Scores, changes and ``noise_floor`` are shares of 1.

    ``noise_floor`` is |M_0 again - M_0| of the means, and None where it was not measured. ``out_of_date`` says which
    iterations were left out because their scores are of other checkpoints.
    """

    experiment: str
    method: str
    headline: str
    noise_floor: float | None
    scores: tuple[ScoreRow, ...]
    funnels: tuple[Funnel, ...]
    drift: tuple[DriftRow, ...]
    samples: tuple[Samples, ...]
    notes: tuple[str, ...]
    out_of_date: tuple[str, ...] = ()
    costs: tuple[IterationCost, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Every figure as plain JSON values; ValueError if one is not finite."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return value


def build_summary(
    experiment: str,
    method: str,
    baseline: pa.Table,
    iterations: Sequence[IterationTables],
    notes: Sequence[str] = (),
    out_of_date: Sequence[str] = (),
    costs: Sequence[IterationCost] = (),
) -> Summary:
    """Summarise an experiment from its baseline scores (stages base, initial and, where the
    noise floor was measured, initial_again) and evaluated iterations.

    Raises EvaluationError for scores that cannot be compared, ValueError for a ledger that does not add up.
    """
    numbers = [tables.iteration for tables in iterations]
    if numbers != sorted(set(numbers)):
        raise ValueError(f"iterations must be in order, each once; got {numbers}")
    scores, noise_floor = score_rows(baseline, [(tables.iteration, tables.eval_scores) for tables in iterations])
    return Summary(
        experiment=experiment,
        method=method,
        headline=headline(scores),
        noise_floor=noise_floor,
        scores=scores,
        funnels=tuple(
            build_funnel(t.iteration, t.reviewed_seed, t.candidate_ledger, t.sft_set, t.preference_set)
            for t in iterations
        ),
        drift=tuple(row for tables in iterations for row in _drift_rows(tables.drift)),
        samples=tuple(pick_samples(t.iteration, t.candidate_ledger, t.sft_set, t.preference_set) for t in iterations),
        notes=tuple(notes),
        costs=tuple(costs),
        out_of_date=tuple(out_of_date),
    )


def _drift_rows(table: pa.Table) -> list[DriftRow]:
    columns = ("iteration", "against", "kl", "weight_distance", "response_nll")
    rows = [DriftRow(**row) for row in table.select(columns).to_pylist()]
    for row in rows:
        if not all(map(math.isfinite, (row.kl, row.weight_distance, row.response_nll))):
            raise EvaluationError(
                f"drift of iteration {row.iteration:03d} against {row.against} is not finite ({row}); the weights of "
                "one of the two checkpoints are broken: materialise them again"
            )
    return rows

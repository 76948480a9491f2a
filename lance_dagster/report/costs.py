"""What the generation of each iteration has cost, and what a kept row costs."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.engines.accounting import Spent
from lance_dagster.storage.experiment_store import ExperimentStore, iteration_key

GENERATING_ASSETS = ("reviewed_seed", "instruction_candidates", "preference_candidates", "candidate_ledger")


@dataclass(frozen=True)
class IterationCost:
    """Generation of one iteration over all its runs. ``per_kept_row`` is None where no row was kept."""

    iteration: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    gpu_seconds: float
    cost: float
    currency: str
    kept_rows: int
    per_kept_row: float | None


def spent_on(store: ExperimentStore, iteration: int) -> Spent:
    """The sum over the assets that generate."""
    paths = [store.spending(asset, iteration_key(iteration)) for asset in GENERATING_ASSETS]
    return sum((Spent.read(path) for path in paths), Spent())


def iteration_cost(store: ExperimentStore, iteration: int, ledger: pa.Table, currency: str) -> IterationCost:
    """``ledger`` is the CANDIDATE_LEDGER of that iteration; responses and flawed responses count as rows."""
    spent = spent_on(store, iteration)
    rows = pc.and_(ledger["kept"], pc.not_equal(ledger["kind"], "instruction"))
    kept = int(pc.sum(rows).as_py() or 0)
    return IterationCost(
        iteration,
        spent.requests,
        spent.prompt_tokens,
        spent.completion_tokens,
        round(spent.seconds, 3),
        round(spent.gpu_seconds, 3),
        spent.cost,
        currency,
        kept,
        spent.cost / kept if kept else None,
    )

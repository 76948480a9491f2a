"""Collecting what a report needs from an experiment's store."""

from __future__ import annotations

from lance_dagster.prompts.prompt_sets import PromptSet
from lance_dagster.report.costs import iteration_cost
from lance_dagster.report.summary import IterationTables, Summary, build_summary
from lance_dagster.settings import EvolutionSettings
from lance_dagster.storage.experiment_store import ExperimentStore, iteration_key
from lance_dagster.storage.tables import read_table

_TABLES = ("reviewed_seed", "candidate_ledger", "sft_set", "preference_set", "eval_scores", "drift")


def gather(store: ExperimentStore, settings: EvolutionSettings, prompts: PromptSet) -> Summary:
    """The summary over the baseline scores and all complete iterations, oldest first.

    Raises ArtifactError while there are no baseline scores.
    """
    baseline = read_table(store.table("baseline_scores"))
    found = [_iteration(store, iteration) for iteration in range(settings.iterations)]
    complete = [tables for tables in found if tables is not None]
    currency = settings.engine.price.currency
    costs = [iteration_cost(store, tables.iteration, tables.candidate_ledger, currency) for tables in complete]
    return build_summary(store.experiment, settings.method, baseline, complete, _notes(settings, prompts), costs)


def _iteration(store: ExperimentStore, iteration: int) -> IterationTables | None:
    """The tables of one iteration, or None while any of them is missing."""
    paths = {name: store.table(name, iteration_key(iteration)) for name in _TABLES}
    if not all(path.exists() for path in paths.values()):
        return None
    return IterationTables(iteration=iteration, **{name: read_table(path) for name, path in paths.items()})


def _notes(settings: EvolutionSettings, prompts: PromptSet) -> list[str]:
    construction = settings.construction
    return [
        f"Base model {settings.model.path}; seed {settings.seed.instructions} and {settings.seed.reviews}; prompts "
        f"{prompts.identity}.",
        f"V = {construction.threshold:g}, K = {construction.samples}, "
        f"{construction.reviews_per_item} review(s) per item, "
        f"SFT rows above {construction.accept_above:g}, pairs with a gap above {construction.preference_gap:g}, "
        f"Seed_t: {settings.seed.growth}.",
    ]

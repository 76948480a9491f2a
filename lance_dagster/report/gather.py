"""Collecting what a report needs from an experiment's store."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.construction.policy import PolicyModel
from lance_dagster.errors import ArtifactError
from lance_dagster.prompts.prompt_sets import PromptSet
from lance_dagster.report.costs import iteration_cost
from lance_dagster.report.summary import IterationTables, Summary, build_summary
from lance_dagster.settings import EvolutionSettings
from lance_dagster.storage.experiment_store import UNPARTITIONED, ExperimentStore, iteration_key
from lance_dagster.storage.tables import read_table

_TABLES = ("reviewed_seed", "candidate_ledger", "sft_set", "preference_set", "eval_scores", "drift")


def gather(
    store: ExperimentStore, settings: EvolutionSettings, prompts: PromptSet, remarks: Sequence[str] = ()
) -> Summary:
    """The summary over the baseline scores and all complete iterations, oldest first.

    ``remarks`` say what else is out of date.

    An iteration whose scores are of other checkpoints than those that are there now is left out, and the summary says
    so. Raises ArtifactError while there are no baseline scores, or only those of other models.
    """
    baseline = read_table(store.table("baseline_scores"))
    if stale := _stale_baseline(store, baseline):
        raise ArtifactError(
            f"{'; '.join(stale)}. Materialise baseline_scores again: `dg launch --job {store.experiment}_setup`"
        )
    complete, out_of_date = [], []
    for iteration in range(settings.iterations):
        tables = _iteration(store, iteration)
        if tables is None:
            continue
        if stale := _stale(store, tables):
            out_of_date.append(
                f"Iteration {iteration_key(iteration)} is out of date and left out: {'; '.join(stale)}. Materialise "
                f"what follows the change, or `dg launch --job {store.experiment}_one_iteration --partition "
                f"{iteration_key(iteration)}`."
            )
        else:
            complete.append(tables)
    notes = _notes(settings, prompts)
    currency = settings.engine.price.currency
    costs = [iteration_cost(store, tables.iteration, tables.candidate_ledger, currency) for tables in complete]
    return build_summary(store.experiment, settings.method, baseline, complete, notes, [*out_of_date, *remarks], costs)


def _stale_baseline(store: ExperimentStore, baseline: pa.Table) -> list[str]:
    """What is wrong with baseline scores that are not of the base and the M_0 that are there now."""
    return [
        reason
        for stage in ("base", "initial")
        if (reason := _scored_another(store, "baseline_scores", baseline, stage, f"{stage}_checkpoint", UNPARTITIONED))
    ]


def _stale(store: ExperimentStore, tables: IterationTables) -> list[str]:
    """Why the scores of an iteration say nothing about its checkpoints as they are now; nothing if they do."""
    key = iteration_key(tables.iteration)
    reasons = [
        _scored_another(store, "eval_scores", tables.eval_scores, stage, f"{stage}_checkpoint", key)
        for stage in ("sft", "dpo")
    ]
    reasons.append(_scored_another(store, "drift", tables.drift, None, "dpo_checkpoint", key))
    if not store.manifest("policy_model", key).exists():
        reasons.append("policy_model is missing")
    else:
        policy = PolicyModel.load(store, tables.iteration).model
        if _digest(store, policy.asset, policy.partition) != policy.digest:
            reasons.append(f"it started from {policy.digest}, which {policy.asset} no longer is")
    return [reason for reason in reasons if reason]


def _scored_another(
    store: ExperimentStore, table: str, scores: pa.Table, stage: str | None, asset: str, partition: str
) -> str | None:
    """The difference between the model that a table measured and the checkpoint that is there, in words."""
    rows = scores if stage is None else scores.filter(pc.equal(scores["stage"], stage))
    measured, now = set(rows["model_digest"].to_pylist()), _digest(store, asset, partition)
    if measured <= {now}:
        return None
    others = ", ".join(sorted(measured - {now}))
    return f"{table} is of {others}, but {asset} is {now or 'missing'}"


def _digest(store: ExperimentStore, asset: str, partition: str) -> str | None:
    """The digest of a checkpoint as it is now; None if there is none."""
    return store.checkpoint(asset, partition).digest if store.manifest(asset, partition).exists() else None


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

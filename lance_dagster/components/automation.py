"""Order between iterations: the guard of policy_model, and the jobs of an experiment."""

from __future__ import annotations

import dagster as dg

from lance_dagster.components.executor import stage_executor
from lance_dagster.components.experiment import Experiment
from lance_dagster.errors import ArtifactError
from lance_dagster.storage.experiment_store import iteration_key

_BACKFILL_TAG, _PARTITION_TAG = "dagster/backfill", "dagster/partition"
SETUP_ASSETS = ("seed_instructions", "seed_reviews", "base_checkpoint", "initial_checkpoint", "baseline_scores")


def refuse_after_failed_iteration(context: dg.AssetExecutionContext, experiment: str, iteration: int) -> None:
    """Inside a backfill, stop at once if the run of the iteration before did not succeed.

    Without this an iteration would train on whatever checkpoint an older run left behind.
    """
    backfill = context.run.tags.get(_BACKFILL_TAG)
    if backfill is None or iteration == 0:
        return
    before = iteration_key(iteration - 1)
    runs = context.instance.get_runs(
        filters=dg.RunsFilter(tags={_BACKFILL_TAG: backfill, _PARTITION_TAG: before}), limit=1
    )
    if runs and runs[0].status != dg.DagsterRunStatus.SUCCESS:
        raise ArtifactError(
            f"iteration {before} of experiment {experiment} did not succeed in this backfill (run {runs[0].run_id}, "
            f"{runs[0].status.value}), so iteration {iteration_key(iteration)} would start from an old model. Mend the "
            f"cause, then re-execute the backfill from failure, or run "
            f"`dg launch --job {experiment}_one_iteration --partition {before}` and continue from there."
        )


def experiment_jobs(experiment: Experiment) -> list[dg.UnresolvedAssetJobDefinition]:
    """``<experiment>_setup``, ``<experiment>_one_iteration`` and ``<experiment>_report``."""
    setup = dg.AssetSelection.assets(*(experiment.key(name) for name in SETUP_ASSETS))
    report = dg.AssetSelection.assets(experiment.key("evolution_report"))
    loop = dg.AssetSelection.groups(experiment.name).materializable() - setup - report
    described = {
        "setup": (setup, "Seeds, base model, M_0 and the baseline scores. Once, before the first iteration."),
        "one_iteration": (
            loop,
            "One whole iteration: review, generate, filter, SFT, DPO, evaluate. Pick the partition.",
        ),
        "report": (report, "The report over all complete iterations."),
    }
    return [
        dg.define_asset_job(
            f"{experiment.name}_{name}",
            selection,
            description=description,
            executor_def=stage_executor(experiment),
            tags={"lance/experiment": experiment.name},
            config={"loggers": {"console": {"config": {}}}},  # the short lines of console.py
        )
        for name, (selection, description) in described.items()
    ]

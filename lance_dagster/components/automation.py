"""Order between iterations: the guard of policy_model, and the jobs of an experiment."""

from __future__ import annotations

import dagster as dg

from lance_dagster.components.executor import stage_executor
from lance_dagster.components.experiment import Experiment
from lance_dagster.errors import ArtifactError
from lance_dagster.storage.experiment_store import SHARED_ASSETS, iteration_key

_BACKFILL_TAG, _PARTITION_TAG = "dagster/backfill", "dagster/partition"
_ROOT_BACKFILL_TAG = "dagster/root_backfill_id"  # of backfills that re-execute another one
WINDOW_TAG = "lance/window"  # shared by the runs that one tick of a schedule requested
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
STAGES = {
    "construct_data": (
        "policy_model",
        "reviewed_seed",
        "instruction_candidates",
        "preference_candidates",
        "candidate_ledger",
        "sft_set",
        "preference_set",
    ),
    "train": ("sft_checkpoint", "dpo_checkpoint"),
    "evaluate": ("eval_scores", "drift"),
}


def refuse_after_failed_iteration(context: dg.AssetExecutionContext, experiment: str, iteration: int) -> None:
    """Inside a backfill (or the window of a schedule), stop at once if an earlier iteration of it did not succeed.

    Without this an iteration would train on whatever checkpoint an older run left behind. Backfills that re-execute a
    failed one are looked at together with it: Dagster starts the later iterations first there.
    """
    tags = context.run.tags
    family = next((tags[name] for name in (_ROOT_BACKFILL_TAG, _BACKFILL_TAG, WINDOW_TAG) if name in tags), None)
    if family is None:
        return
    failed: dg.DagsterRun | None = None
    for earlier in reversed(range(iteration)):
        record = _newest_run(context.instance, family, iteration_key(earlier))
        if record is None or record.dagster_run.status == dg.DagsterRunStatus.SUCCESS:
            break
        if _made_since(context.instance, dg.AssetKey([experiment, "dpo_checkpoint"]), iteration_key(earlier), record):
            break  # by re-executing that run, or by another run that somebody started
        failed = record.dagster_run
    if failed is not None:
        cause, run = failed.tags[_PARTITION_TAG], f"run {failed.run_id}, {failed.status.value}"
        what, mend = "did not succeed", "Mend the cause, run"
        if failed.status in UNFINISHED:
            what, mend = "is being tried again", "Wait until it is complete. If it fails: mend the cause, run"
        raise ArtifactError(
            f"iteration {cause} of experiment {experiment} {what} ({run}), so iteration {iteration_key(iteration)} "
            f"would start from an old model. {mend} `dg launch --job {experiment}_one_iteration --partition {cause}` "
            "or re-execute that run from failure in the web UI. Then launch the later iterations again."
        )


def _newest_run(instance: dg.DagsterInstance, family: str, partition: str) -> dg.RunRecord | None:
    """The newest run of an iteration among a backfill and those that re-execute it, or in a schedule's window."""
    records = [
        record
        for name in (_BACKFILL_TAG, _ROOT_BACKFILL_TAG, WINDOW_TAG)
        for record in instance.get_run_records(dg.RunsFilter(tags={name: family, _PARTITION_TAG: partition}), limit=1)
    ]
    return max(records, key=lambda record: record.create_timestamp, default=None)


def _made_since(instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str, run: dg.RunRecord) -> bool:
    """The iteration's model was made after this run of it was created."""
    made = instance.fetch_materializations(dg.AssetRecordsFilter(asset, [partition]), limit=1).records
    return bool(made) and made[0].timestamp > run.create_timestamp.timestamp()


def loop_assets(experiment: Experiment) -> dg.AssetSelection:
    """All assets of one iteration."""
    return _named(experiment, *(name for names in STAGES.values() for name in names))


def _named(experiment: Experiment, *names: str) -> dg.AssetSelection:
    return dg.AssetSelection.assets(*(experiment.key(name) for name in names))


def experiment_jobs(experiment: Experiment) -> list[dg.UnresolvedAssetJobDefinition]:
    """``<experiment>_setup``, ``_construct_data``, ``_train``, ``_evaluate``, ``_one_iteration`` and ``_report``.

    A branch has no setup: that of the other experiment is its own.
    """
    pick = "Pick the partition."
    described = {
        "setup": (
            _named(experiment, *SHARED_ASSETS),
            "Seeds, base model, M_0 and the baseline scores. Once, before the first iteration.",
        ),
        "construct_data": (
            _named(experiment, *STAGES["construct_data"]),
            f"The data of an iteration: review, generate, filter, assemble the sets. {pick}",
        ),
        "train": (_named(experiment, *STAGES["train"]), f"SFT and DPO on the sets of an iteration. {pick}"),
        "evaluate": (_named(experiment, *STAGES["evaluate"]), f"Scores and drift of an iteration. {pick}"),
        "one_iteration": (
            loop_assets(experiment),
            f"One whole iteration: review, generate, filter, SFT, DPO, evaluate. {pick}",
        ),
        "report": (_named(experiment, "evolution_report"), "The report over all complete iterations."),
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
        if name != "setup" or experiment.settings.start_from is None
    ]

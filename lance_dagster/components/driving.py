"""What starts runs: the schedules and sensors that drive an experiment. All are stopped until somebody starts them.

Schedules and sensors cannot request a backfill, so each asks for one run per iteration. Pool, run queue and the guard
of policy_model keep them in order, as they do for a backfill.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from lance_dagster.components.automation import UNFINISHED, WINDOW_TAG, loop_assets
from lance_dagster.components.experiment import Experiment
from lance_dagster.storage.experiment_store import iteration_key
from lance_dagster.storage.files import json_digest

_BACKFILL, _PARTITION = "dagster/backfill", "dagster/partition"


def experiment_schedules(experiment: Experiment) -> list[dg.ScheduleDefinition]:
    """``<experiment>_next_iteration`` and ``<experiment>_refresh_window``."""
    return [_next_iteration(experiment), _refresh_window(experiment)]


def driving_sensors(experiment: Experiment) -> list[dg.SensorDefinition]:
    """``<experiment>_campaign`` and ``<experiment>_seed_files``; a branch has no seed of its own."""
    own_seed = experiment.settings.start_from is None
    return [_campaign(experiment), *([_seed_files(experiment)] if own_seed else [])]


def next_missing(experiment: Experiment, instance: dg.DagsterInstance) -> int:
    """The first iteration without a DPO checkpoint; the number of iterations if there is none."""
    made = set(instance.get_materialized_partitions(experiment.key("dpo_checkpoint")))
    keys = experiment.iterations.get_partition_keys()
    return next((int(key) for key in keys if key not in made), experiment.settings.iterations)


def running_iterations(experiment: Experiment, instance: dg.DagsterInstance) -> set[str]:
    """Partitions that a run of this experiment is making or waiting to make."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return {
        run.tags[_PARTITION]
        for run in runs
        if _PARTITION in run.tags
        and (
            run.tags.get("lance/experiment") == experiment.name
            or any(key.path[0] == experiment.name for key in run.asset_selection or ())
        )
    }


def _next_iteration(experiment: Experiment) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{experiment.name}_next_iteration",
        cron_schedule=experiment.settings.automation.next_iteration_cron,
        target=loop_assets(experiment),
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Requests the first iteration that has no DPO checkpoint. One that failed is requested again at "
        "the next tick.",
    )
    def next_iteration(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        done = next_missing(experiment, context.instance)
        if done == experiment.settings.iterations:
            return dg.SkipReason(f"all {done} iterations are made; raise `iterations` in the settings to go on")
        key = iteration_key(done)
        running = running_iterations(experiment, context.instance)
        if running:
            return dg.SkipReason(f"iteration {', '.join(sorted(running))} is being made")
        return dg.RunRequest(partition_key=key, run_key=f"{key}-{context.scheduled_execution_time.isoformat()}")

    return next_iteration


def _refresh_window(experiment: Experiment) -> dg.ScheduleDefinition:
    first = max(experiment.settings.automation.refresh_from, experiment.settings.first_iteration)

    @dg.schedule(
        name=f"{experiment.name}_refresh_window",
        cron_schedule=experiment.settings.automation.refresh_window_cron,
        target=loop_assets(experiment),
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"Requests every iteration from {iteration_key(first)} on that was made before, one run each, in "
        "order. If one fails, the later ones of the same tick stop at once, as in a backfill.",
    )
    def refresh_window(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        done = next_missing(experiment, context.instance)
        if done <= first:
            return dg.SkipReason(f"iteration {iteration_key(first)} was not made yet")
        window = context.scheduled_execution_time.isoformat()
        return [
            dg.RunRequest(
                partition_key=iteration_key(iteration),
                run_key=f"{window}-{iteration_key(iteration)}",
                tags={WINDOW_TAG: f"{experiment.name}-{window}", "dagster/priority": str(-iteration)},
            )
            for iteration in range(first, done)
        ]

    return refresh_window


def _campaign(experiment: Experiment) -> dg.SensorDefinition:
    automation = experiment.settings.automation
    last = experiment.settings.iterations - 1 if automation.campaign_until is None else automation.campaign_until

    @dg.sensor(
        name=f"{experiment.name}_campaign",
        target=loop_assets(experiment),
        minimum_interval_seconds=automation.interval_seconds,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=f"Requests iteration t+1 when iteration t is complete, up to {iteration_key(last)}. An iteration "
        "that failed is not requested again: mend it and re-execute its run, and the campaign goes on. Leaves "
        "iterations of an unfinished or failed backfill to that backfill.",
    )
    def campaign(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        instance = context.instance
        done = next_missing(experiment, instance)
        if done > last:
            return dg.SkipReason(f"iteration {iteration_key(last)} is complete: the campaign has reached its end")
        running = running_iterations(experiment, instance)
        if running:
            return dg.SkipReason(f"iteration {', '.join(sorted(running))} is being made")
        asset, partition = ("dpo_checkpoint", iteration_key(done - 1)) if done else ("initial_checkpoint", None)
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(experiment.key(asset, done - 1), [partition] if partition else None), limit=1
        ).records
        if not records:
            if partition is None:
                return dg.SkipReason(f"there is no initial model yet: run the job {experiment.name}_setup first")
            return dg.SkipReason(f"iteration {partition} of {experiment.key(asset, done - 1).path[0]} is not made yet")
        run = instance.get_run_by_id(records[0].run_id)
        backfill = run.tags.get(_BACKFILL) if run else None
        if backfill is not None and not _succeeded(instance, backfill):
            return dg.SkipReason(f"iteration {partition} belongs to backfill {backfill}, which is not complete")
        key = iteration_key(done)
        return dg.RunRequest(partition_key=key, run_key=f"{key}-after-{records[0].storage_id}")

    return campaign


def _succeeded(instance: dg.DagsterInstance, backfill: str) -> bool:
    found = instance.get_backfill(backfill)
    return found is not None and found.status.value == "COMPLETED_SUCCESS"


def _seed_files(experiment: Experiment) -> dg.SensorDefinition:
    sources = {
        "seed_instructions": experiment.settings.seed.instructions,
        "seed_reviews": experiment.settings.seed.reviews,
    }
    settle = experiment.settings.automation.seed_settle_seconds

    @dg.sensor(
        name=f"{experiment.name}_seed_files",
        target=dg.AssetSelection.assets(*(experiment.key(name) for name in sources)),
        minimum_interval_seconds=experiment.settings.automation.interval_seconds,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Loads a seed again when its file changes, or files are added to its folder. What follows from it "
        f"is for the sensor {experiment.name}_changes.",
    )
    def seed_files(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        seen: dict[str, str] = json.loads(context.cursor or "{}")
        waiting = []
        for asset, source in sources.items():
            files = _files_of(experiment, source)
            if any(time.time() - file.stat().st_mtime < settle for file in files):
                waiting.append(f"{source} is still being written")
                continue
            state = json_digest([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])
            if files and seen.get(asset) != state:
                seen[asset] = state
                yield dg.RunRequest(run_key=f"{asset}-{state}", asset_selection=[experiment.key(asset)])
        context.update_cursor(json.dumps(seen))
        if waiting:
            yield dg.SkipReason("; ".join(waiting))

    return seed_files


def _files_of(experiment: Experiment, source: str) -> list[Path]:
    """Local files that a seed is read from; none for data sets of a hub and for what does not exist."""
    path = experiment.root / source
    if "://" in source or not path.exists():
        return []
    return [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())

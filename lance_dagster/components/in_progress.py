"""What is under way on a Dagster instance: two runs of one experiment beside each other would write the same files."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

import dagster as dg

PROCESS_TAG = "lance/process"  # host and process of a run that the command line executes itself
_RUNS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_BACKFILLS = ("REQUESTED", "CANCELING", "FAILING")


def process_tag() -> dict[str, str]:
    """The tag of a run that this process executes."""
    return {PROCESS_TAG: f"{socket.gethostname()}:{os.getpid()}"}


def in_progress(instance: dg.DagsterInstance, experiment: str) -> list[str]:
    """Runs and backfills of an experiment that have not ended, one description each.

    A run whose process was killed has not told the instance that it ended: if the command line executed it on this
    machine, it is marked as failed here.
    """
    found = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_RUNS)):
        if run.tags.get("lance/experiment") == experiment or _touches(experiment, run.asset_selection):
            if _process_is_gone(run.tags.get(PROCESS_TAG)):
                instance.report_run_failed(run, "the process of this run was killed")
            else:
                found.append(f"run {run.run_id} ({run.job_name}, {run.status.value})")
    for backfill in instance.get_backfills():
        if backfill.status.value in _BACKFILLS and _touches(experiment, backfill.asset_selection):
            found.append(f"backfill {backfill.backfill_id} ({backfill.status.value})")
    return found


def _touches(experiment: str, assets: Iterable[dg.AssetKey] | None) -> bool:
    return any(key.path[0] == experiment for key in assets or ())


def _process_is_gone(tag: str | None) -> bool:
    host, _, process = (tag or "").rpartition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False

"""Runs that have not ended keep an experiment busy; those of killed processes do not."""

from __future__ import annotations

import socket
import subprocess
import sys

import dagster as dg
import pytest

from lance_dagster.components.in_progress import PROCESS_TAG, in_progress, process_tag

JOB = "mini_one_iteration"


def started(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, **changes: object) -> dg.DagsterRun:
    run = dg.DagsterRun(job_name=JOB, status=status, **{"tags": {"lance/experiment": "mini"}, **changes})  # type: ignore[arg-type]
    return instance.add_run(run)


@pytest.mark.parametrize("status", ["NOT_STARTED", "STARTING", "STARTED", "CANCELING"])
def test_a_run_that_has_not_ended_is_named(status: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = started(instance, dg.DagsterRunStatus[status])
        assert in_progress(instance, "mini") == [f"run {run.run_id} ({JOB}, {status})"]
        assert in_progress(instance, "mini_discovery") == []


def test_runs_of_single_assets_count_and_those_that_have_ended_do_not() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        started(instance, dg.DagsterRunStatus.SUCCESS)
        started(instance, dg.DagsterRunStatus.FAILURE)
        assert in_progress(instance, "mini") == []
        keys = frozenset({dg.AssetKey(["mini", "sft_set"])})
        run = started(instance, dg.DagsterRunStatus.STARTED, tags={}, asset_selection=keys)
        assert len(in_progress(instance, "mini")) == 1 and run.run_id in in_progress(instance, "mini")[0]


def test_a_run_whose_process_was_killed_is_marked_as_failed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tags = {"lance/experiment": "mini", PROCESS_TAG: f"{socket.gethostname()}:{process.pid}"}
    elsewhere = {**tags, PROCESS_TAG: f"another_host:{process.pid}"}
    with dg.DagsterInstance.ephemeral() as instance:
        run = started(instance, dg.DagsterRunStatus.STARTED, tags=tags)
        assert len(in_progress(instance, "mini")) == 1, "it is alive"
        process.kill()
        process.communicate()
        assert in_progress(instance, "mini") == []
        found = instance.get_run_by_id(run.run_id)
        assert found is not None and found.status == dg.DagsterRunStatus.FAILURE
        started(instance, dg.DagsterRunStatus.STARTED, tags=elsewhere)
        assert len(in_progress(instance, "mini")) == 1, "nobody here can know"
        started(instance, dg.DagsterRunStatus.STARTED, tags={**tags, **process_tag()})
        assert len(in_progress(instance, "mini")) == 2

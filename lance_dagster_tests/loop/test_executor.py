"""Each stage in a process of its own, which is gone when the next one starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import psutil
import pytest

from lance_dagster_tests.loop.process_job import one_iteration
from lance_dagster_tests.tiny import Tiny, tiny_experiment

STAGES = ["policy_model", "reviewed_seed", "sft_checkpoint"]


def test_every_stage_has_a_process_of_its_own_and_none_survives(
    evolved: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_experiment(tmp_path)
    shutil.copytree(str(evolved.experiment.store.folder), str(tiny.experiment.store.folder))
    assert tiny.run("setup", select=["seed_instructions", "seed_reviews"]).success
    monkeypatch.setenv("LANCE_TINY", str(tmp_path))
    before = set(psutil.Process().children(recursive=True))
    with dg.execute_job(
        dg.reconstructable(one_iteration),
        instance=tiny.instance,
        tags={"dagster/partition": "000"},
        asset_selection=[tiny.experiment.key(name) for name in STAGES],
    ) as result:
        assert result.success
        events = result.all_events
    workers = {
        event.step_key: int(event.event_specific_data.metadata["pid"].value)  # type: ignore[union-attr, arg-type]
        for event in events
        if event.event_type == dg.DagsterEventType.STEP_WORKER_STARTED
    }
    checks = [
        step for step in workers if step.endswith("__checks")
    ]  # of each stage, likewise in processes of their own
    assert sorted(set(workers) - set(checks)) == sorted(f"tiny__{name}" for name in STAGES)
    assert len(set(workers.values())) == len(workers)
    assert not any(psutil.pid_exists(pid) for pid in workers.values())
    left = set(psutil.Process().children(recursive=True)) - before
    assert [p for p in left if "resource_tracker" not in " ".join(p.cmdline())] == []
    order = [
        (event.event_type, event.step_key)
        for event in events
        if (event.is_step_start or event.is_step_success) and event.step_key not in checks
    ]
    assert order == [pair for name in STAGES for pair in _start_and_end(f"tiny__{name}")], "one after the other"


def _start_and_end(step: str) -> list[tuple[dg.DagsterEventType, str]]:
    return [(dg.DagsterEventType.STEP_START, step), (dg.DagsterEventType.STEP_SUCCESS, step)]


def test_the_embedded_experiments_run_in_one_process_and_others_by_default_do_not() -> None:
    from lance_dagster.components.executor import stage_executor
    from lance_dagster.components.experiment import Experiment
    from lance_dagster_tests.construction.scripted import settings

    def executor(**changes: str) -> str:
        chosen = settings().model_copy(update=changes)
        return stage_executor(Experiment("x", chosen, Path())).name

    assert executor() == "process_per_stage"
    assert executor(executor="in_process") == "in_process"

"""Schedules and sensors that start runs: what they request, what they leave alone, and that they ask only once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from lance_dagster.components.automation import STAGES, WINDOW_TAG
from lance_dagster_tests.loop.events import opened, with_history
from lance_dagster_tests.tiny import Tiny, tiny_experiment

NOW = datetime(2026, 11, 20, 2, tzinfo=UTC)


@pytest.fixture
def tiny(evolved: Tiny, tmp_path: Path) -> Tiny:
    """Iterations 000 and 001 of three are complete."""
    with_history(evolved, tmp_path)
    return opened(tmp_path)


def look(tiny: Tiny, sensor: str, cursor: str | None = None) -> tuple[list[dg.RunRequest], str | None, str | None]:
    """One look of a sensor: requests, the reason of a skip, and the cursor."""
    definition = tiny.definitions.resolve_sensor_def(f"tiny_{sensor}")
    context = dg.build_sensor_context(tiny.instance, cursor=cursor, definitions=tiny.definitions)
    data = definition.evaluate_tick(context)
    return list(data.run_requests or []), data.skip_message, data.cursor


def tick(tiny: Tiny, schedule: str, at: datetime = NOW) -> tuple[list[dg.RunRequest], str | None]:
    definition = tiny.definitions.resolve_schedule_def(f"tiny_{schedule}")
    answer = definition(dg.build_schedule_context(tiny.instance, scheduled_execution_time=at))
    if isinstance(answer, dg.SkipReason):
        return [], answer.skip_message
    return ([answer] if isinstance(answer, dg.RunRequest) else list(answer)), None


def make(tiny: Tiny, partition: str, tags: Mapping[str, str], fails: bool = False) -> None:
    """A run that makes dpo_checkpoint of an iteration, or fails to, without training anything."""

    @dg.asset(key=["tiny", "dpo_checkpoint"], partitions_def=tiny.experiment.iterations)
    def dpo_checkpoint() -> dg.MaterializeResult[None]:
        if fails:
            raise dg.Failure("as asked", allow_retries=False)
        return dg.MaterializeResult(data_version=dg.DataVersion(f"made for {partition}"))

    dg.materialize(
        [dpo_checkpoint], partition_key=partition, tags=dict(tags), instance=tiny.instance, raise_on_error=False
    )


def test_everything_that_starts_runs_is_stopped_until_somebody_starts_it(tiny: Tiny) -> None:
    sensors = {sensor.name: sensor for sensor in tiny.definitions.sensors or ()}
    assert set(sensors) == {"tiny_changes", "tiny_report", "tiny_campaign", "tiny_seed_files"}
    assert all(sensor.default_status == dg.DefaultSensorStatus.STOPPED for sensor in sensors.values())
    schedules = {schedule.name: schedule for schedule in tiny.definitions.schedules or ()}
    assert set(schedules) == {"tiny_next_iteration", "tiny_refresh_window"}
    assert all(schedule.default_status == dg.DefaultScheduleStatus.STOPPED for schedule in schedules.values())


def test_the_jobs_are_the_stages_of_an_iteration(tiny: Tiny) -> None:
    everything = tuple(name for stage in STAGES.values() for name in stage)
    for job, names in {**STAGES, "one_iteration": everything}.items():
        found = tiny.definitions.resolve_job_def(f"tiny_{job}")
        assert {key.path[-1] for key in found.asset_layer.executable_asset_keys} == set(names)
        assert found.partitions_def == tiny.experiment.iterations


def test_a_stage_runs_alone_on_what_the_stage_before_it_left(tiny: Tiny) -> None:
    assert tiny.run("construct_data", "001").success
    assert tiny.run("evaluate", "001").success


def test_the_campaign_asks_for_the_next_iteration_once_whatever_restarts(tiny: Tiny) -> None:
    requests, _, _ = look(tiny, "campaign")
    assert [request.partition_key for request in requests] == ["002"]
    again, _, _ = look(tiny, "campaign")
    assert again[0].run_key == requests[0].run_key, "Dagster starts one run per key, so a failed 002 is not tried again"
    make(tiny, "001", {})
    mended, _, _ = look(tiny, "campaign")
    assert mended[0].run_key != requests[0].run_key, "iteration 001 was made again"


def test_the_campaign_starts_with_iteration_000_as_soon_as_there_is_an_initial_model(tmp_path: Path) -> None:
    tiny = tiny_experiment(tmp_path)
    requests, reason, _ = look(tiny, "campaign")
    assert not requests and reason is not None and "run the job tiny_setup first" in reason
    tiny.instance.report_runless_asset_event(dg.AssetMaterialization(tiny.experiment.key("initial_checkpoint")))
    assert [request.partition_key for request in look(tiny, "campaign")[0]] == ["000"]


def test_the_campaign_ends_at_its_target(evolved: Tiny, tmp_path: Path) -> None:
    with_history(evolved, tmp_path)
    _, reason, _ = look(opened(tmp_path, automation={"campaign_until": 1}), "campaign")
    assert reason is not None and "iteration 001 is complete" in reason


def test_the_campaign_leaves_iterations_of_an_unfinished_backfill_alone(tiny: Tiny) -> None:
    make(tiny, "001", {"dagster/backfill": "abcdefgh"})
    requests, reason, _ = look(tiny, "campaign")
    assert not requests and reason == "iteration 001 belongs to backfill abcdefgh, which is not complete"


def test_nothing_is_started_while_an_iteration_is_being_made(tiny: Tiny) -> None:
    job = tiny.definitions.resolve_job_def("tiny_one_iteration")
    tiny.instance.create_run_for_job(
        job, status=dg.DagsterRunStatus.STARTED, tags={"lance/experiment": "tiny", "dagster/partition": "002"}
    )
    assert look(tiny, "campaign")[1] == "iteration 002 is being made"
    assert tick(tiny, "next_iteration")[1] == "iteration 002 is being made"


def test_next_iteration_asks_for_the_first_one_that_is_missing(tiny: Tiny) -> None:
    assert [request.partition_key for request in tick(tiny, "next_iteration")[0]] == ["002"]
    make(tiny, "002", {})
    reason = tick(tiny, "next_iteration")[1]
    assert reason is not None and reason.startswith("all 3 iterations are made")


def test_refresh_window_asks_for_one_run_per_made_iteration_in_order(evolved: Tiny, tmp_path: Path) -> None:
    with_history(evolved, tmp_path)
    requests, _ = tick(opened(tmp_path), "refresh_window")
    assert [request.partition_key for request in requests] == ["000", "001"]
    assert len({request.run_key for request in requests}) == 2
    assert {request.tags[WINDOW_TAG] for request in requests} == {"tiny-2026-11-20T02:00:00+00:00"}
    assert [request.tags["dagster/priority"] for request in requests] == ["0", "-1"]
    later = opened(tmp_path, automation={"refresh_from": 1})
    assert [request.partition_key for request in tick(later, "refresh_window")[0]] == ["001"]
    none = opened(tmp_path, automation={"refresh_from": 2})
    assert tick(none, "refresh_window") == ([], "iteration 002 was not made yet")


def test_schedules_follow_the_cron_of_the_settings(evolved: Tiny, tmp_path: Path) -> None:
    with_history(evolved, tmp_path)
    tiny = opened(tmp_path, automation={"next_iteration_cron": "*/5 * * * *"})
    assert tiny.definitions.resolve_schedule_def("tiny_next_iteration").cron_schedule == "*/5 * * * *"


@pytest.mark.parametrize("tag", ["dagster/backfill", "dagster/root_backfill_id", WINDOW_TAG])
def test_after_a_failed_iteration_the_later_ones_of_a_window_or_backfill_name_the_run_that_failed(
    tiny: Tiny, tag: str
) -> None:
    make(tiny, "000", {tag: "together"}, fails=True)
    failed = tiny.instance.get_runs(limit=1)[0]
    job = tiny.definitions.resolve_job_def("tiny_one_iteration")
    for partition in ("001", "002"):
        result = job.execute_in_process(
            instance=tiny.instance,
            partition_key=partition,
            tags={tag: "together"},
            asset_selection=[tiny.experiment.key("policy_model")],
            raise_on_error=False,
        )
        assert not result.success
        message = str(result.filter_events(lambda event: event.is_step_failure)[0].step_failure_data)
        assert f"iteration 000 of experiment tiny did not succeed (run {failed.run_id}, FAILURE)" in message
        assert "dg launch --job tiny_one_iteration --partition 000" in message


def test_an_iteration_that_is_being_tried_again_is_waited_for(tiny: Tiny) -> None:
    make(tiny, "000", {"dagster/backfill": "together"}, fails=True)
    again = tiny.instance.add_run(
        dg.DagsterRun(
            "tiny_one_iteration",
            status=dg.DagsterRunStatus.STARTED,
            tags={"dagster/backfill": "together", "dagster/partition": "000"},
        )
    )
    result = tiny.definitions.resolve_job_def("tiny_one_iteration").execute_in_process(
        instance=tiny.instance,
        partition_key="001",
        tags={"dagster/backfill": "together"},
        asset_selection=[tiny.experiment.key("policy_model")],
        raise_on_error=False,
    )
    message = str(result.filter_events(lambda event: event.is_step_failure)[0].step_failure_data)
    assert f"iteration 000 of experiment tiny is being tried again (run {again.run_id}, STARTED)" in message
    assert "Wait until it is complete." in message


def write_seeds(folder: Path, name: str, *rows: Mapping[str, Any], age: float = 60) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(folder / name, (time.time() - age, time.time() - age))


def test_new_files_of_a_seed_folder_are_picked_up_once_and_half_written_ones_are_left_alone(
    evolved: Tiny, tmp_path: Path
) -> None:
    with_history(evolved, tmp_path)
    row = {"instruction": "Name the first letter of AB.", "response": "A"}
    write_seeds(tmp_path / "seeds", "a.jsonl", row)
    write_seeds(tmp_path, "reviews.jsonl", {**row, "rationale": "fine", "score": 9})
    tiny = opened(tmp_path, seed={"instructions": "seeds"})
    os.utime(tmp_path / "reviews.jsonl", (1, 1))
    requests, _, cursor = look(tiny, "seed_files")
    assert [[key.path[-1] for key in request.asset_selection or ()] for request in requests] == [
        ["seed_instructions"],
        ["seed_reviews"],
    ]
    assert look(tiny, "seed_files", cursor)[0] == []
    write_seeds(tmp_path / "seeds", "b.jsonl", {**row, "response": "B"}, age=0)
    requests, reason, cursor = look(tiny, "seed_files", cursor)
    assert not requests and reason == "seeds is still being written"
    os.utime(tmp_path / "seeds/b.jsonl", (1, 1))
    requests, _, cursor = look(tiny, "seed_files", cursor)
    assert [[key.path[-1] for key in request.asset_selection or ()] for request in requests] == [["seed_instructions"]]
    assert tiny.run("setup", select=["seed_instructions"]).success
    assert tiny.table("seed_instructions").num_rows == 2

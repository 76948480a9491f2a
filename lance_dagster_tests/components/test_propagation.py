"""Change propagates: what automation requests after a change, without a daemon, with real runs of what it requests."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView

from lance_dagster.components.propagation import OutOfDate
from lance_dagster.components.staleness import Wiring
from lance_dagster.storage.tables import write_table
from lance_dagster_tests.loop.events import latest_tags, opened, report_content, with_history
from lance_dagster_tests.tiny import TRAINING, Tiny

Requests = list[tuple[str, str]]  # (asset, partition or nothing)


def tick(tiny: Tiny, cursor: Any = None) -> tuple[Requests, Any]:
    """What one look of the sensor requests."""
    result = dg.evaluate_automation_conditions(tiny.definitions, tiny.instance, cursor=cursor)
    keys = tiny.definitions.resolve_asset_graph().materializable_asset_keys
    requests = [(key.path[-1], part or "") for key in keys for part in result.get_requested_partitions(key)]
    return sorted(requests), result.cursor


def run(tiny: Tiny, requests: Requests) -> bool:
    """Run what was requested, one run per partition, as the daemon does."""
    done = True
    for partition in sorted({part for _, part in requests}):
        keys = [tiny.experiment.key(asset) for asset, part in requests if part == partition]
        result = tiny.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=tiny.instance, partition_key=partition or None, asset_selection=keys, raise_on_error=False
        )
        done = done and result.success
    return done


def of_loop(requests: Requests) -> Requests:
    """Without the report, which has a sensor of its own."""
    return [request for request in requests if request[0] != "evolution_report"]


def wave(tiny: Tiny, cursor: Any = None) -> tuple[list[Requests], Any]:
    """Tick and run until nothing is requested."""
    steps: list[Requests] = []
    for _ in range(40):
        requests, cursor = tick(tiny, cursor)
        if not requests:
            return steps, cursor
        assert run(tiny, requests), requests
        steps.append(requests)
    raise AssertionError(f"the wave did not end: {steps}")


@pytest.fixture
def root(evolved: Tiny, tmp_path: Path) -> Path:
    with_history(evolved, tmp_path)
    return tmp_path


def test_nothing_is_requested_where_everything_is_current_and_what_is_missing_is_not_made(root: Path) -> None:
    tiny = opened(root)
    requests, cursor = tick(tiny)
    assert requests == []
    assert tick(tiny, cursor)[0] == [], "iteration 002 does not exist, and automation does not start it"


def test_what_a_tick_read_is_forgotten_with_the_next() -> None:
    """The sensors run in a process that lives for weeks."""

    def views() -> int:
        gc.collect()
        return sum(type(one) is AssetGraphView for one in gc.get_objects())

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["000", "001"]), code_version="1")
    def made() -> None: ...

    condition = OutOfDate(Wiring.of([made], {}))
    definitions = dg.Definitions([made.map_asset_specs(lambda s: s.replace_attributes(automation_condition=condition))])
    before = views()
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(4):
            dg.evaluate_automation_conditions(definitions, instance)
    assert views() <= before + 1


def test_an_artifact_made_again_with_the_same_content_requests_nothing(root: Path) -> None:
    tiny = opened(root)
    _, cursor = tick(tiny)
    assert run(tiny, [("seed_instructions", ""), ("policy_model", "000"), ("reviewed_seed", "000")])
    assert tick(tiny, cursor)[0] == []


def test_one_change_is_one_wave_in_order_and_through_the_promotion_into_the_next_iteration(root: Path) -> None:
    tiny = opened(root, training={"dpo": {**TRAINING, "epochs": 1, "learning_rate": 2e-4}})
    steps, cursor = wave(tiny)
    loop = [step for step in map(of_loop, steps) if step]
    assert loop == [
        [("dpo_checkpoint", "000")],
        [("drift", "000"), ("eval_scores", "000"), ("policy_model", "001")],
        [("reviewed_seed", "001")],
        [("instruction_candidates", "001"), ("preference_candidates", "001")],
        [("candidate_ledger", "001")],
        [("preference_set", "001"), ("sft_set", "001")],
        [("sft_checkpoint", "001")],
        [("dpo_checkpoint", "001")],
        [("drift", "001"), ("eval_scores", "001")],
    ], loop
    assert max(Counter(request for step in loop for request in step).values()) == 1
    assert tick(tiny, cursor)[0] == []
    assert tick(opened(root, training={"dpo": {**TRAINING, "epochs": 1, "learning_rate": 2e-4}}))[0] == []


def test_propagation_stops_where_a_digest_stays_the_same(root: Path) -> None:
    tiny = opened(root)
    before = latest_tags(tiny.instance, "sft_set", "000")["dagster/data_version"]
    report_content(tiny.instance, "candidate_ledger", "000", "another digest")  # the file itself is as it was
    steps, _ = wave(tiny)
    assert steps == [[("preference_set", "000"), ("sft_set", "000")]]
    assert latest_tags(tiny.instance, "sft_set", "000")["dagster/data_version"] == before


def test_a_change_that_touches_all_iterations_waits_for_the_earlier_ones(root: Path) -> None:
    tiny = opened(root, construction={"threshold": 6.5})
    assert of_loop(tick(tiny)[0]) == [("reviewed_seed", "000")]


def test_a_change_of_the_seed_goes_through_the_initial_model(root: Path) -> None:
    tiny = opened(root)
    report_content(tiny.instance, "seed_reviews", None, "other reviews")
    assert tick(tiny)[0] == [("initial_checkpoint", "")]


def test_a_failed_step_is_not_tried_again_until_something_changes(root: Path) -> None:
    tiny = opened(root, construction={"threshold": 6.5})
    requests, cursor = tick(tiny)
    requests = of_loop(requests)
    (root / "store/tiny/policy_model/000.json").rename(root / "away.json")
    assert not run(tiny, requests)
    assert of_loop(tick(tiny, cursor)[0]) == []
    (root / "away.json").rename(root / "store/tiny/policy_model/000.json")
    again = opened(root, construction={"threshold": 6.0})
    assert of_loop(tick(again, cursor)[0]) == [("reviewed_seed", "000")], "another setting is another attempt"


def test_what_lies_behind_a_failed_blocking_check_is_not_requested(root: Path) -> None:
    tiny = opened(root)
    pairs = tiny.table("preference_set", "000")
    path = tiny.experiment.store.table("preference_set", "000")
    rejected = pairs.schema.get_field_index("rejected")
    write_table(path, pairs.set_column(rejected, pairs.schema.field("rejected"), pairs["chosen"]))
    report_content(tiny.instance, "preference_set", "000", "other pairs")
    assert not judged(tiny, "preference_set", "sides_differ", "000")
    assert tick(tiny)[0] == []
    write_table(path, pairs)
    assert judged(tiny, "preference_set", "sides_differ", "000")
    assert tick(tiny)[0] == [("dpo_checkpoint", "000")]


def test_what_a_run_made_counts_when_the_run_has_ended(root: Path) -> None:
    tiny = opened(root)
    key, iterations = tiny.experiment.key, tiny.experiment.iterations
    parents = [key(name) for name in ("policy_model", "reviewed_seed", "candidate_ledger")]
    found: list[Requests] = []

    @dg.asset(
        key=key("preference_set"),
        deps=parents,
        partitions_def=iterations,
        code_version=tiny.wiring.code_versions[key("preference_set")],
    )
    def preference_set() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(data_version=dg.DataVersion("other pairs"))

    @dg.asset(deps=[preference_set], partitions_def=iterations)
    def later_in_the_same_run() -> None:
        found.append(tick(tiny)[0])

    sources = [dg.AssetSpec(parent, partitions_def=iterations) for parent in parents]
    assert dg.materialize(
        [*sources, preference_set, later_in_the_same_run], partition_key="000", instance=tiny.instance
    ).success
    assert found == [[]], "the checks of the run may be still to come"
    assert tick(tiny)[0] == [("dpo_checkpoint", "000")]


def judged(tiny: Tiny, asset: str, check: str, partition: str) -> bool:
    """Run one check alone, as from the web UI."""
    key = dg.AssetCheckKey(tiny.experiment.key(asset), check)
    job = dg.define_asset_job("one_check", dg.AssetSelection.checks(key))
    result = (
        dg.Definitions.merge(tiny.definitions, dg.Definitions(jobs=[job]))
        .resolve_job_def("one_check")
        .execute_in_process(instance=tiny.instance, tags={"dagster/partition": partition}, raise_on_error=False)
    )
    return all(evaluation.passed for evaluation in result.get_asset_check_evaluations())


def test_the_report_is_written_again_once_per_evaluated_iteration(root: Path) -> None:
    tiny = opened(root)
    report_content(tiny.instance, "eval_scores", "001", "other scores")
    report_content(tiny.instance, "drift", "001", "other drift")
    requests, cursor = tick(tiny)
    assert requests == [("evolution_report", "")]
    assert run(tiny, requests) and tick(tiny, cursor)[0] == []

"""Gates as asset checks: what blocks, what only warns, and what a blocked iteration does not do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from lance_dagster import records
from lance_dagster.components.checks import IS_CURRENT, gates_of
from lance_dagster.gates import checkpoints
from lance_dagster.storage.tables import write_table
from lance_dagster_tests.loop.test_faults import SEEDS, copy_of
from lance_dagster_tests.tiny import REPOSITORY, Tiny, tiny_experiment

BLOCKS, ERROR, WARNS = "blocks", "error", "warning"
TRAINED = {
    "end_token_learned": BLOCKS,
    "no_double_start_token": BLOCKS,
    "same_template": BLOCKS,
    "finite_weights": BLOCKS,
    "loss_fell": WARNS,
}
REVIEWED = {"reviews_parse": WARNS, "scores_spread": WARNS}
LEVELS = {
    "seed_instructions": {"no_evaluation_item": BLOCKS},
    "initial_checkpoint": TRAINED,
    "baseline_scores": {"scores_complete": ERROR},
    "reviewed_seed": REVIEWED,
    "candidate_ledger": {**REVIEWED, "kept_share": WARNS},
    "sft_set": {"no_evaluation_item": BLOCKS},
    "preference_set": {"no_evaluation_item": BLOCKS, "sides_differ": BLOCKS, "length_gap": WARNS},
    "sft_checkpoint": TRAINED,
    "dpo_checkpoint": {**TRAINED, "first_loss_is_ln_2": BLOCKS},
    "eval_scores": {
        "scores_complete": ERROR,
        "not_below_previous": WARNS,
        "not_below_initial": WARNS,
        "not_below_base": WARNS,
    },
}


def checks_of(tiny: Tiny) -> list[dg.AssetChecksDefinition]:
    return [each for each in tiny.definitions.asset_checks or () if isinstance(each, dg.AssetChecksDefinition)]


def evaluations(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], Any]:
    """Evaluations of a run by asset and check."""
    return {(each.asset_key.path[-1], each.check_name): each for each in result.get_asset_check_evaluations()}


def test_a_gate_blocks_only_where_training_or_promoting_would_be_harm(tmp_path: Path) -> None:
    tiny = tiny_experiment(tmp_path)
    assert {asset: {gate.name: gate.level for gate in gates} for asset, gates in gates_of(tiny.experiment).items()} == (
        LEVELS
    )
    specs = {(spec.asset_key.path[-1], spec.name): spec for each in checks_of(tiny) for spec in each.check_specs}
    for asset, gates in LEVELS.items():
        for name, level in gates.items():
            assert specs[asset, name].blocking is (level == BLOCKS), (asset, name)
            assert specs[asset, name].description
    current = {asset for asset, name in specs if name == IS_CURRENT}
    assert current == {key.path[-1] for key, parents in _parents(tiny).items() if parents}, (
        "every asset that is made of others says whether it is current"
    )
    assert not any(spec.blocking for (_, name), spec in specs.items() if name == IS_CURRENT)


def test_contamination_only_warns_where_the_experiment_does_not_filter_it(tmp_path: Path) -> None:
    tiny = tiny_experiment(tmp_path, construction={"filters": {"contamination": "off"}})
    assert [gate.level for gate in gates_of(tiny.experiment)["sft_set"]] == [WARNS]


def test_every_gate_is_judged_in_a_run_of_its_iteration_and_bears_the_partition(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    assert tiny.run("setup", select=SEEDS).success
    result = tiny.run("one_iteration", "001", select=["sft_set", "preference_set", "eval_scores"])
    assert result.success
    found = evaluations(result)
    assert {asset for asset, _ in found} == {"sft_set", "preference_set", "eval_scores"}
    for asset in ("sft_set", "preference_set", "eval_scores"):
        for name, level in LEVELS[asset].items():
            assert found[asset, name].partition == "001"
            severity = dg.AssetCheckSeverity.WARN if level == WARNS else dg.AssetCheckSeverity.ERROR
            assert found[asset, name].severity == severity
            assert found[asset, name].description
    assert all(found["sft_set", name].passed for name in LEVELS["sft_set"])
    figures = found["eval_scores", "not_below_previous"].metadata
    assert isinstance(figures["difference"].value, float)


def test_checks_without_an_iteration_say_where_they_are_judged(tmp_path: Path) -> None:
    tiny = tiny_experiment(tmp_path)
    checks = dg.AssetSelection.checks_for_assets(tiny.experiment.key("candidate_ledger"))
    definitions = dg.Definitions.merge(tiny.definitions, dg.Definitions(jobs=[dg.define_asset_job("alone", checks)]))
    result = definitions.resolve_job_def("alone").execute_in_process(instance=tiny.instance, raise_on_error=False)
    failure = str(result.filter_events(lambda event: event.is_step_failure)[0].step_failure_data)
    assert "The checks of candidate_ledger are judged per iteration" in failure


def test_a_row_of_the_evaluation_in_a_stored_set_does_not_pass(evolved: Tiny, tmp_path: Path) -> None:
    items = (REPOSITORY / "lance_dagster/mini/lm_eval/dev.jsonl").read_text().splitlines()
    leaked = json.loads(items[0])["instruction"]
    tiny = copy_of(evolved, tmp_path)
    rows = tiny.table("sft_set", "001").to_pylist()
    path = tiny.experiment.store.table("sft_set", "001")
    write_table(path, pa.Table.from_pylist([*rows[1:], {**rows[0], "prompt": leaked}], schema=records.SFT_SET))
    verdict = gates_of(tiny.experiment)["sft_set"][0].judge("001")
    assert not verdict.passed and leaked in verdict.explanation


def test_a_blocking_gate_that_fails_stops_what_follows_in_the_run(
    evolved: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = copy_of(evolved, tmp_path)
    monkeypatch.setattr(checkpoints, "LN_2", 5.0)
    result = tiny.run("one_iteration", "001", select=["dpo_checkpoint", "eval_scores"])
    assert not result.success
    verdict = evaluations(result)["dpo_checkpoint", "first_loss_is_ln_2"]
    assert not verdict.passed and verdict.severity == dg.AssetCheckSeverity.ERROR
    assert {key.path[-1] for key in _materialised(result)} == {"dpo_checkpoint"}


def test_a_warning_does_not_stop_what_follows(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path, gates={"kept_share": [0.0, 0.0]})
    assert tiny.run("setup", select=SEEDS).success
    result = tiny.run("one_iteration", "000", select=["candidate_ledger", "sft_set"])
    assert result.success
    verdict = evaluations(result)["candidate_ledger", "kept_share"]
    assert not verdict.passed and verdict.severity == dg.AssetCheckSeverity.WARN
    assert "sft_set" in {key.path[-1] for key in _materialised(result)}


@pytest.mark.parametrize(
    ("asset", "metric", "sick", "gate"),
    [
        ("dpo_checkpoint", "gate/first_loss", 0.3, "first_loss_is_ln_2"),
        ("sft_checkpoint", "gate/eos_in_labels", 0.5, "end_token_learned"),
    ],
)
def test_a_checkpoint_that_does_not_pass_is_not_promoted_by_another_run(
    evolved: Tiny, tmp_path: Path, asset: str, metric: str, sick: float, gate: str
) -> None:
    tiny = copy_of(evolved, tmp_path)
    path = Path(str(tiny.experiment.store.manifest(asset, "000")))
    manifest = json.loads(path.read_text())
    manifest["metrics"][metric] = sick
    path.write_text(json.dumps(manifest))
    message = tiny.failure("one_iteration", "001", select=["policy_model"])
    assert f"tiny/{asset}[000] does not pass its check {gate}" in message
    assert "dg launch --job tiny_one_iteration --partition 000" in message


def test_pairs_of_the_same_text_are_found_in_the_stored_set(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    pairs = tiny.table("preference_set", "001")
    same = pairs.set_column(pairs.schema.get_field_index("rejected"), pairs.schema.field("rejected"), pairs["chosen"])
    write_table(tiny.experiment.store.table("preference_set", "001"), same)
    verdicts = {gate.name: gate.judge("001") for gate in gates_of(tiny.experiment)["preference_set"]}
    assert not verdicts["sides_differ"].passed and verdicts["no_evaluation_item"].passed


def test_scores_that_cannot_be_compared_are_said_to_be_so_and_stop_nothing(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    tiny.experiment.store.table("baseline_scores").unlink()
    for gate in gates_of(tiny.experiment)["eval_scores"]:
        verdict = gate.judge("001")
        assert not verdict.passed and "not compared" in verdict.explanation
        assert "baseline_scores.parquet; materialise the asset" in verdict.explanation
        assert gate.level != BLOCKS


def test_a_check_of_an_artifact_that_is_not_there_fails_with_the_next_step(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    shutil.rmtree(str(tiny.experiment.store.folder / "candidate_ledger"))
    keys = [spec.key for each in checks_of(tiny) for spec in each.check_specs]
    chosen = [key for key in keys if key.asset_key.path[-1] == "candidate_ledger"]
    job = dg.define_asset_job("only_checks", dg.AssetSelection.checks(*chosen))
    definitions = dg.Definitions.merge(tiny.definitions, dg.Definitions(jobs=[job]))
    result = definitions.resolve_job_def("only_checks").execute_in_process(
        instance=tiny.instance, tags={"dagster/partition": "000"}, raise_on_error=False
    )
    assert not result.success
    failed = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert "materialise the asset that writes it first" in str(failed[0].user_failure_data.description)


def _parents(tiny: Tiny) -> dict[dg.AssetKey, set[dg.AssetKey]]:
    graph = tiny.definitions.resolve_asset_graph()
    return {key: set(graph.get(key).parent_keys) for key in graph.get_all_asset_keys()}


def _materialised(result: dg.ExecuteInProcessResult) -> set[dg.AssetKey]:
    return {event.asset_key for event in result.get_asset_materialization_events() if event.asset_key}

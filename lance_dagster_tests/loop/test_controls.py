"""Controls in the loop: stages that are left out, and an experiment that takes as many steps as another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from lance_dagster.components.self_evolution import experiment_definitions
from lance_dagster.errors import SettingsError
from lance_dagster_tests.loop.test_faults import SEEDS, copy_of
from lance_dagster_tests.tiny import Tiny


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_stage_that_is_left_out_passes_its_model_on_without_a_copy(evolved: Tiny, tmp_path: Path, stage: str) -> None:
    tiny = copy_of(evolved, tmp_path, training={"stages": [{"sft": "dpo", "dpo": "sft"}[stage]]})
    store = tiny.experiment.store
    shutil.rmtree(str(store.asset_folder(f"{stage}_checkpoint")))
    assert tiny.run("setup", select=SEEDS).success
    assert tiny.run("one_iteration", "000", select=["sft_checkpoint", "dpo_checkpoint"]).success
    parent = {"sft": ("initial_checkpoint", "current"), "dpo": ("sft_checkpoint", "000")}[stage]
    passed, source = store.checkpoint(f"{stage}_checkpoint", "000"), store.checkpoint(*parent)
    assert (passed.location, passed.digest, passed.parent_digest) == (source.location, source.digest, source.digest)
    assert passed.settings == {"passed_on": True}
    assert [path.name for path in store.asset_folder(f"{stage}_checkpoint").iterdir()] == ["000.json"]
    assert tiny.run("one_iteration", "001", select=["policy_model"]).success
    assert tiny.manifest("policy_model", "001")["model"]["digest"] == store.checkpoint("dpo_checkpoint", "000").digest


def test_a_control_takes_as_many_steps_as_the_experiment_that_it_names(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path, training={"steps_of": "other"})
    store = tiny.experiment.store
    assert tiny.run("setup", select=SEEDS).success
    message = tiny.failure("one_iteration", "000", select=["sft_checkpoint"])
    assert "training.steps_of is 'other', but other/sft_checkpoint[000] has not been materialised" in message
    assert "dg launch --job other_one_iteration --partition 000" in message
    shutil.copytree(str(store.folder), str(store.base / "other"))
    assert tiny.run("one_iteration", "000", select=["sft_checkpoint"]).success
    steps = [evolved.manifest(f"{stage}_checkpoint", "000")["metrics"]["steps"] for stage in ("sft", "dpo")]
    assert tiny.manifest("sft_checkpoint", "000")["metrics"]["steps"] == sum(steps)
    path = Path(str(store.base / "other/dpo_checkpoint/000.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {}}))
    message = tiny.failure("one_iteration", "000", select=["sft_checkpoint"])
    assert "other/dpo_checkpoint[000] does not say how many steps" in message


def test_the_checkpoints_whose_steps_are_matched_are_parents_of_the_same_iteration(
    evolved: Tiny, tmp_path: Path
) -> None:
    own = evolved.experiment
    training = own.settings.training.model_copy(update={"steps_of": own.name})
    settings = own.settings.model_copy(update={"training": training})
    control = replace(own, name="control", settings=settings)
    both = dg.Definitions.merge(experiment_definitions(own), experiment_definitions(control))
    node = both.resolve_asset_graph().get(control.key("sft_checkpoint"))
    matched = {own.key("sft_checkpoint"), own.key("dpo_checkpoint")}
    assert node.parent_keys == {control.key("sft_set"), control.key("policy_model"), *matched}
    job = both.resolve_job_def("control_one_iteration")
    assert not matched & set(job.asset_layer.executable_asset_keys)
    with pytest.raises(SettingsError, match=r"names tiny itself"):
        experiment_definitions(replace(own, settings=settings))


def test_looking_at_what_was_promoted_fails_with_one_message(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    tiny.experiment.store.table("sft_set", "000").unlink()
    job = tiny.definitions.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=tiny.instance, asset_selection=[tiny.experiment.key("promoted_checkpoint")], raise_on_error=False
    )
    [failure] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert "there is no table" in str(failure.user_failure_data.description)

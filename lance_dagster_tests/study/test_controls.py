"""The controls: each is valid over each mini experiment, differs from it, and differs as its name says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lance_dagster.components.self_evolution import ExperimentFile, inherited
from lance_dagster.errors import SettingsError
from lance_dagster.settings import EvolutionSettings, merged, parse_settings
from lance_dagster.study.controls import WHOLE, variant_named, variants
from lance_dagster_tests.tiny import REPOSITORY


def with_control(experiment: str, control: str) -> EvolutionSettings:
    file = REPOSITORY / "lance_dagster/defs" / experiment / "defs.yaml"
    attributes = ExperimentFile.model_validate(yaml.safe_load(file.read_text())["attributes"])
    return parse_settings(merged(inherited(attributes, file), variant_named(control).settings))


def test_the_whole_experiment_comes_first_and_changes_nothing() -> None:
    assert variants()[0].name == WHOLE
    assert variants()[0].settings == {}
    assert {variant.name for variant in variants()[1:]} == {"replay", "more_epochs", "no_review", "no_dpo", "no_sft"}


@pytest.mark.parametrize("experiment", ["mini", "mini_discovery"])
def test_every_control_is_valid_and_no_two_are_the_same(experiment: str) -> None:
    made = [with_control(experiment, variant.name) for variant in variants()]
    assert len({settings.model_dump_json() for settings in made}) == len(made)


@pytest.mark.parametrize("experiment", ["mini", "mini_discovery"])
def test_controls_differ_in_what_their_names_say(experiment: str) -> None:
    whole = with_control(experiment, WHOLE)
    replay = with_control(experiment, "replay")
    assert (replay.method, replay.training.stages, replay.training.steps_of) == ("replay", ("sft",), WHOLE)
    more = with_control(experiment, "more_epochs")
    assert more.method == "replay"
    assert more.training.sft.epochs > whole.training.sft.epochs
    unreviewed = with_control(experiment, "no_review")
    assert (unreviewed.construction.acceptance, unreviewed.training.steps_of) == ("all", WHOLE)
    assert with_control(experiment, "no_dpo").training.stages == ("sft",)
    assert with_control(experiment, "no_sft").training.stages == ("dpo",)


def test_what_takes_as_many_steps_waits_for_the_whole_experiment() -> None:
    assert [variant.name for variant in variants() if variant.needs_whole] == ["no_review", "replay"]


def test_an_unknown_control_is_answered_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match="no control 'nope'; there are lance, more_epochs, no_dpo"):
        variant_named("nope")


def test_a_file_that_is_no_control_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("settings: {}\n")
    with pytest.raises(SettingsError, match=r"odd.yaml: a control needs `what`"):
        variants(tmp_path)

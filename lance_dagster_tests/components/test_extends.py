"""`extends`: an experiment that says only what is different from another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lance_dagster.components.self_evolution import ExperimentFile, inherited
from lance_dagster.errors import SettingsError
from lance_dagster.settings import merged
from lance_dagster_tests.tiny import REPOSITORY


def write(folder: Path, name: str, extends: str | None, settings: dict[str, Any]) -> tuple[ExperimentFile, Path]:
    attributes = {"experiment": name, "extends": extends, "settings": settings}
    file = folder / name / "defs.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump({"type": "x", "attributes": attributes}))
    return ExperimentFile.model_validate(attributes), file


def test_sections_are_merged_and_values_replaced() -> None:
    settings = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert merged(settings, {"a": {"c": [3]}, "d": {"e": 5}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 5}}
    assert settings == {"a": {"b": 1, "c": [1, 2]}, "d": 4}, "the original is left alone"


def test_the_nearest_file_has_the_last_word(tmp_path: Path) -> None:
    write(tmp_path, "first", None, {"x": 1, "y": {"z": 1, "v": 1}})
    write(tmp_path, "second", "first", {"y": {"z": 2}})
    third = write(tmp_path, "third", "second", {"x": 3})
    assert inherited(*third) == {"x": 3, "y": {"z": 2, "v": 1}}


def test_a_missing_experiment_is_answered_with_those_there_are(tmp_path: Path) -> None:
    mine = write(tmp_path, "mine", "nope", {})
    with pytest.raises(SettingsError, match=r"mine/defs.yaml: extends 'nope', but there is no .*; there are mine"):
        inherited(*mine)


def test_a_circle_is_refused_and_shown(tmp_path: Path) -> None:
    write(tmp_path, "a", "b", {})
    b = write(tmp_path, "b", "a", {})
    with pytest.raises(SettingsError, match="b extends a extends b, which is a circle"):
        inherited(*b)


def test_a_file_that_is_no_experiment_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "defs.yaml").write_text("just: text")
    mine = write(tmp_path, "mine", "odd", {})
    with pytest.raises(SettingsError, match=r"extends .*odd/defs.yaml, which is not the file of an experiment"):
        inherited(*mine)


def test_the_discovery_experiment_is_the_demo_with_another_world() -> None:
    file = REPOSITORY / "lance_dagster/defs/mini_discovery/defs.yaml"
    attributes = ExperimentFile.model_validate(yaml.safe_load(file.read_text())["attributes"])
    settings = inherited(attributes, file)
    assert settings["prompts"] == {"set": "mini_v1"}
    assert settings["model"]["device"] == "cpu"
    assert settings["model"]["path"].endswith("base_discovery")

"""A branch: another experiment goes on from an iteration of a first one, and shares what came before."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
import yaml

from lance_dagster.components.console import console_logger
from lance_dagster.components.self_evolution import experiment_definitions
from lance_dagster.components.staleness import Events, Situation
from lance_dagster.errors import SettingsError
from lance_dagster.settings import parse_settings
from lance_dagster_tests.loop.events import opened, report_content, with_history
from lance_dagster_tests.test_loading import LOAD, project_with, run
from lance_dagster_tests.tiny import TRAINING, Tiny, tiny_settings

DPO = {"dpo": {**TRAINING, "epochs": 1, "learning_rate": 3e-4}}


def branch(evolved: Tiny, root: Path, iteration: int = 0) -> Tiny:
    """`branched` goes on after an iteration of `tiny`, with another learning rate."""
    with_history(evolved, root)
    tiny = opened(root)
    settings = tiny_settings(root, training=DPO, start_from={"experiment": "tiny", "iteration": iteration})
    experiment = replace(tiny.experiment, name="branched", settings=parse_settings(settings))
    definitions = dg.Definitions.merge(
        tiny.definitions, experiment_definitions(experiment), dg.Definitions(loggers={"console": console_logger})
    )
    return Tiny(experiment, definitions, tiny.instance)


def test_a_branch_trains_on_from_the_shared_model_and_copies_nothing(evolved: Tiny, tmp_path: Path) -> None:
    branched = branch(evolved, tmp_path)
    result = branched.run("one_iteration", "001")
    assert result.success
    policy = branched.manifest("policy_model", "001")
    assert policy["model"]["digest"] == evolved.manifest("dpo_checkpoint", "000")["digest"]
    assert policy["model"]["partition"] == "000"
    old, new = evolved.manifest("dpo_checkpoint", "001"), branched.manifest("dpo_checkpoint", "001")
    assert old["parent_digest"] == new["parent_digest"] and old["digest"] != new["digest"]
    assert {row["iteration"] for row in branched.table("sft_set", "001").to_pylist()} >= {-1, 0, 1}
    files = [path.relative_to(tmp_path / "store/branched") for path in (tmp_path / "store/branched").rglob("*")]
    assert not [path for path in files if "000" in path.name or path.parts[0] in ("initial_checkpoint", "seed_reviews")]
    assert not (tmp_path / "store/branched/completions").exists(), "a branch takes its texts from where it branches off"
    spent = tmp_path / "store/branched/spending/instruction_candidates/001.json"
    assert not spent.exists(), "the same model was asked the same before"
    metadata = result.asset_materializations_for_node("branched__policy_model")[0].metadata
    assert metadata["source_asset"].value == dg.AssetKey(["tiny", "dpo_checkpoint"])
    assert branched.run("report").success
    report = json.loads((tmp_path / "store/branched/report.json").read_text())
    assert [row["iteration"] for row in report["scores"] if row["stage"] == "dpo"] == [0, 1]


def test_the_edge_from_the_shared_iteration_is_in_the_graph_and_carries_staleness(
    evolved: Tiny, tmp_path: Path
) -> None:
    branched = branch(evolved, tmp_path)
    graph = branched.definitions.resolve_asset_graph()
    node = graph.get(dg.AssetKey(["branched", "policy_model"]))
    shared = {dg.AssetKey(["tiny", name]) for name in ("initial_checkpoint", "promoted_checkpoint")}
    assert shared <= set(node.parent_keys)
    assert node.partitions_def is not None and list(node.partitions_def.get_partition_keys()) == ["001", "002"]
    assert len(graph.toposorted_asset_keys) == len(graph.get_all_asset_keys())
    assert not [key for key in graph.get_all_asset_keys() if key.path == ["branched", "initial_checkpoint"]]
    assert branched.run("one_iteration", "001", select=["policy_model"]).success
    place = (dg.AssetKey(["branched", "policy_model"]), "001")
    own = [each for each in branched.definitions.assets or () if _group(each) == "branched"]
    wiring = branched.wiring_of(own)
    assert Situation(Events(branched.instance, wiring)).moved(place) == []
    report_content(branched.instance, "dpo_checkpoint", "000", "other weights")
    assert Situation(Events(branched.instance, wiring)).moved(place) == ["promoted_checkpoint[000]"]


def test_an_iteration_that_the_other_experiment_has_not_made_is_refused_with_its_command(
    evolved: Tiny, tmp_path: Path
) -> None:
    branched = branch(evolved, tmp_path, iteration=1)
    shutil.rmtree(tmp_path / "store/tiny/dpo_checkpoint")
    message = branched.failure("one_iteration", "002", select=["policy_model"])
    assert "tiny/dpo_checkpoint[001] has not been materialised" in message
    assert "dg launch --job tiny_one_iteration --partition 001" in message


def test_a_branch_must_leave_itself_something_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="leaves no iteration of its own"):
        parse_settings(tiny_settings(tmp_path, start_from={"experiment": "tiny", "iteration": 2}))


def test_a_branch_of_a_branch_and_of_nothing_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    project = project_with(tmp_path, {})
    defs = project / "lance_dagster/defs"
    for name, other, extends in (("first", "mine", "mine"), ("second", "first", "mine"), ("third", "gone", "mine")):
        (defs / name).mkdir()
        attributes = {
            "experiment": name,
            "extends": extends,
            "settings": {"start_from": {"experiment": other, "iteration": 0}},
        }
        file = {"type": "lance_dagster.components.self_evolution.SelfEvolution", "attributes": attributes}
        (defs / name / "defs.yaml").write_text(yaml.safe_dump(file))
    for name, complaint in (("second", "which is a branch itself"), ("third", "branches from 'gone'")):
        text = run("python", "-c", LOAD, cwd=project, PYTHONPATH=str(project)).stderr
        assert complaint in text, text[-2000:]
        shutil.rmtree(defs / name)
    loaded = run("python", "-c", LOAD, cwd=project, PYTHONPATH=str(project))
    assert loaded.returncode == 0, loaded.stderr


def _group(asset: object) -> str:
    if isinstance(asset, dg.SourceAsset):
        return asset.key.path[0]
    assert isinstance(asset, dg.AssetsDefinition)
    return next(iter(asset.keys)).path[0]

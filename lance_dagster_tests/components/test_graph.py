"""What the graph of an experiment promises, held against a snapshot: keys, edges, partitions, checks, automation.

After a change that is meant, write the snapshot anew: `python -m lance_dagster_tests.components.test_graph`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from lance_dagster.components.experiment import Experiment
from lance_dagster.components.self_evolution import experiment_definitions
from lance_dagster.settings import parse_settings
from lance_dagster_tests.tiny import REPOSITORY

SNAPSHOT = Path(__file__).with_name("graph_of_mini.json")


def graph_of_mini() -> dict[str, Any]:
    """The shipped experiment `mini`, as far as users and other code rely on it."""
    settings = yaml.safe_load((REPOSITORY / "lance_dagster/defs/mini/defs.yaml").read_text())["attributes"]["settings"]
    definitions = experiment_definitions(Experiment("mini", parse_settings(settings), REPOSITORY))
    graph = definitions.resolve_asset_graph()
    assets = {}
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        assets["/".join(key.path)] = {
            "deps": sorted("/".join(parent.path) for parent in node.parent_keys),
            "crosses_iterations": sorted("/".join(parent.path) for parent in node.partition_mappings),
            "partitions": None if node.partitions_def is None else len(node.partitions_def.get_partition_keys()),
            "pools": sorted(node.pools or ()),
            "automated": node.automation_condition is not None,
            "checks": {
                check.name: ("blocks" if graph.get(check).blocking else "does not block")
                for check in sorted(node.check_keys, key=lambda check: check.name)
            },
        }
    jobs = {
        job.name: sorted(
            key.path[-1] for key in definitions.resolve_job_def(job.name).asset_layer.executable_asset_keys
        )
        for job in sorted(definitions.jobs or (), key=lambda job: job.name)
    }
    return {
        "assets": assets,
        "jobs": jobs,
        "sensors": sorted(sensor.name for sensor in definitions.sensors or ()),
        "schedules": sorted(schedule.name for schedule in definitions.schedules or ()),
    }


def test_the_graph_is_the_one_of_the_snapshot() -> None:
    assert graph_of_mini() == json.loads(SNAPSHOT.read_text())


def test_the_graph_has_no_cycle_and_every_check_has_the_partitions_of_its_asset() -> None:
    settings = yaml.safe_load((REPOSITORY / "lance_dagster/defs/mini/defs.yaml").read_text())["attributes"]["settings"]
    graph = experiment_definitions(Experiment("mini", parse_settings(settings), REPOSITORY)).resolve_asset_graph()
    assert len(graph.toposorted_asset_keys) == len(graph.get_all_asset_keys())
    for key in graph.asset_check_keys:
        assert graph.get(key).partitions_def == graph.get(key.asset_key).partitions_def, key
    assert isinstance(next(iter(graph.asset_check_keys)), dg.AssetCheckKey)


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(graph_of_mini(), indent=1) + "\n")

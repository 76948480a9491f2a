"""Events of a Dagster instance as tests need them: an experiment with its history, content that changes by report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from lance_dagster.components.console import console_logger
from lance_dagster.components.experiment import Experiment
from lance_dagster.components.self_evolution import experiment_definitions
from lance_dagster.settings import parse_settings
from lance_dagster_tests.tiny import Tiny, tiny_settings


def with_history(evolved: Tiny, root: Path) -> None:
    """Copy artifacts and run history of the evolved experiment to ``root``, which must be empty."""
    shutil.copytree(evolved.experiment.root, root, dirs_exist_ok=True)


def with_served_history(evolved: Tiny, home: Path) -> None:
    """The same for a home that ``serving`` uses: its dagster.yaml keeps the history under data/dagster/storage."""
    with_history(evolved, home)
    (home / "dagster").rename(home / "history")
    (home / "data/dagster").mkdir(parents=True)
    (home / "history").rename(home / "data/dagster/storage")


def opened(root: Path, storage: str = "dagster", **changes: Mapping[str, Any] | int | str) -> Tiny:
    """The experiment under ``root`` with its history, under changed settings: what reloading the YAML does."""
    experiment = Experiment("tiny", parse_settings(tiny_settings(root, **changes)), root)
    definitions = dg.Definitions.merge(
        experiment_definitions(experiment),
        dg.Definitions(executor=dg.in_process_executor, loggers={"console": console_logger}),
    )
    return Tiny(experiment, definitions, dg.DagsterInstance.local_temp(str(root / storage)))


def latest_tags(instance: dg.DagsterInstance, asset: str, partition: str | None) -> Mapping[str, str]:
    """Tags of the newest materialisation, or of the newest observation of promoted_checkpoint."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(["tiny", asset]), [partition] if partition else None)
    if asset == "promoted_checkpoint":
        observation = instance.fetch_observations(wanted, limit=1).records[0].asset_observation
        assert observation is not None
        return observation.tags
    materialization = instance.fetch_materializations(wanted, limit=1).records[0].asset_materialization
    assert materialization is not None and materialization.tags is not None
    return materialization.tags


def report_content(
    instance: dg.DagsterInstance, asset: str, partition: str | None, version: str, alone: bool = False
) -> None:
    """Report that an artifact now has this digest, all else as it was.

    dpo_checkpoint reports its promotion too, unless ``alone``.
    """
    assets = [asset, "promoted_checkpoint"] if asset == "dpo_checkpoint" and not alone else [asset]
    for name in assets:
        kind = dg.AssetObservation if name == "promoted_checkpoint" else dg.AssetMaterialization
        tags = {**latest_tags(instance, name, partition), "dagster/data_version": version}
        instance.report_runless_asset_event(kind(dg.AssetKey(["tiny", name]), partition=partition, tags=tags))

"""A tiny but complete experiment: the embedded model, a few dozen seed rows, minutes turned into seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import yaml

from lance_dagster.components.console import console_logger
from lance_dagster.components.experiment import Experiment
from lance_dagster.components.self_evolution import experiment_definitions
from lance_dagster.components.staleness import Wiring
from lance_dagster.settings import parse_settings
from lance_dagster.storage.tables import read_table

REPOSITORY = Path(__file__).parents[1]
TRAINING = {"batch_size": 32, "schedule": "linear", "max_tokens": 256, "gradient_checkpointing": False}


def head_of(source: Path, target: Path, rows: int) -> None:
    """The first rows of a JSONL file."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
    target.write_text("".join(lines), encoding="utf-8")


def tiny_settings(root: Path, **changes: Mapping[str, Any] | int | str) -> dict[str, Any]:
    """Settings of the shipped experiment `mini`, made small. ``changes`` replace keys of whole sections."""
    shipped = yaml.safe_load((REPOSITORY / "lance_dagster/defs/mini/defs.yaml").read_text())["attributes"]["settings"]
    head_of(REPOSITORY / "data/mini/seed_instructions_uneven.jsonl", root / "seed.jsonl", 60)
    head_of(REPOSITORY / "data/mini/seed_reviews.jsonl", root / "reviews.jsonl", 100)
    settings: dict[str, Any] = {
        **shipped,
        "iterations": 3,
        "store": "store",
        "seed": {"instructions": "seed.jsonl", "reviews": "reviews.jsonl"},
    }
    settings["construction"] = {**shipped["construction"], "samples": 2}
    settings["training"] = {
        "initial": {**TRAINING, "epochs": 1, "learning_rate": 3e-4},
        "sft": {**TRAINING, "epochs": 1, "learning_rate": 3e-4},
        "dpo": {**TRAINING, "epochs": 1, "learning_rate": 1e-4},
        "replay_seed": "accepted",
        "replay_reviews": True,
    }
    settings["evaluation"] = {**shipped["evaluation"], "tasks": ["mini_dev"], "limit": 60, "drift_rows": 16}
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values} if isinstance(values, Mapping) else values
    return settings


@dataclass(frozen=True)
class Tiny:
    """The experiment, its definitions and a Dagster instance of its own."""

    experiment: Experiment
    definitions: dg.Definitions
    instance: dg.DagsterInstance

    @property
    def wiring(self) -> Wiring:
        """The edges of the experiment, as automation and checks know them."""
        return self.wiring_of(self.definitions.assets or ())

    def wiring_of(self, assets: Iterable[Any]) -> Wiring:
        """The edges of some of the definitions' assets."""
        rejoined = {self.experiment.key("promoted_checkpoint"): self.experiment.key("dpo_checkpoint")}
        return Wiring.of(assets, rejoined)

    def run(self, job: str, partition: str | None = None, select: list[str] | None = None) -> dg.ExecuteInProcessResult:
        """Run ``setup``, ``one_iteration`` or ``report``, or only some of its assets; failures are returned."""
        keys = None if select is None else [self.experiment.key(name) for name in select]
        return self.definitions.resolve_job_def(f"{self.experiment.name}_{job}").execute_in_process(
            instance=self.instance, partition_key=partition, asset_selection=keys, raise_on_error=False
        )

    def failure(self, job: str, partition: str | None = None, select: list[str] | None = None) -> str:
        """What a user reads when this run fails."""
        result = self.run(job, partition, select)
        assert not result.success, "this run was expected to fail"
        messages = []
        for event in result.all_events:
            if event.is_step_failure:
                data = event.step_failure_data
                described = data.user_failure_data.description if data.user_failure_data else None
                messages.append(described or data.error_display_string)
        return "\n".join(messages)

    def table(self, asset: str, partition: str | None = None) -> pa.Table:
        return read_table(self.experiment.store.table(asset, partition))

    def manifest(self, asset: str, partition: str = "current") -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.experiment.store.manifest(asset, partition).read_text())
        return value


def tiny_experiment(root: Path, **changes: Mapping[str, Any] | int | str) -> Tiny:
    """A new tiny experiment under ``root``, which must be empty."""
    experiment = Experiment("tiny", parse_settings(tiny_settings(root, **changes)), root)
    definitions = dg.Definitions.merge(
        experiment_definitions(experiment),
        dg.Definitions(executor=dg.in_process_executor, loggers={"console": console_logger}),
    )
    home = root / "dagster"
    home.mkdir()
    return Tiny(experiment, definitions, dg.DagsterInstance.local_temp(str(home)))

"""What one run of a study came to: scores of its checkpoints item by item, and what the world's oracle says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.components.experiment import Experiment
from lance_dagster.errors import ArtifactError
from lance_dagster.mini.measure import measure_model, order_of_pairs, precision_of_ledger, reviews_of_table
from lance_dagster.mini.pretraining import world_of_recipe
from lance_dagster.mini.world import World
from lance_dagster.report.scores import PREFERRED_METRICS
from lance_dagster.storage.checkpoints import local_folder
from lance_dagster.storage.experiment_store import UNPARTITIONED, iteration_key, resolve_path
from lance_dagster.storage.files import json_digest, read_json, write_json
from lance_dagster.storage.tables import read_table
from lance_dagster.study.run import StudyRun


@dataclass(frozen=True)
class Scored:
    """One checkpoint on the first evaluation task: the score of each document, in the order of their ids."""

    label: str
    digest: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class Outcome:
    """A run: its checkpoints in order (base, M_0, then SFT and DPO of each iteration) and the oracle's measures."""

    variant: str
    what: str
    seed: int
    checkpoints: tuple[Scored, ...]
    oracle: Mapping[str, Any] | None

    def checkpoint(self, label: str) -> Scored:
        return next(each for each in self.checkpoints if each.label == label)

    @property
    def last(self) -> Scored:
        return self.checkpoints[-1]


def outcome(experiment: Experiment, run: StudyRun, what: str, log: Callable[[str], None]) -> Outcome:
    """Read a finished run. Raises ArtifactError for one that lacks a table."""
    labels = [("base", "base_checkpoint", UNPARTITIONED), ("M_0", "initial_checkpoint", UNPARTITIONED)]
    for number in range(run.iterations):
        key = iteration_key(number)
        labels += [(f"M_{number}^S", "sft_checkpoint", key), (f"M_{number + 1}", "dpo_checkpoint", key)]
    checkpoints = tuple(_scored(experiment, *entry) for entry in labels)
    return Outcome(run.variant, what, run.seed, checkpoints, _oracle(experiment, run.iterations, checkpoints, log))


def _scored(experiment: Experiment, label: str, asset: str, partition: str) -> Scored:
    digest = experiment.store.checkpoint(asset, partition).digest
    items = read_table(experiment.store.items(digest))
    task = experiment.settings.evaluation.tasks[0]
    of_task = items.filter(pc.equal(items["task"], task))
    metrics = set(of_task["metric"].to_pylist())
    metric = next((name for name in PREFERRED_METRICS if name in metrics), min(metrics, default=None))
    if metric is None:
        raise ArtifactError(f"{experiment.store.items(digest)} holds no scores of {task!r}; evaluate {label} again")
    chosen = of_task.filter(pc.equal(of_task["metric"], metric)).sort_by("document")
    return Scored(label, digest, tuple(chosen["value"].to_pylist()))


def world_of(experiment: Experiment) -> World | None:
    """The mini world that the base model was made in, by the recipe beside its weights; None for other models."""
    recipe = Path(resolve_path(experiment.settings.model.path, experiment.root)) / "pretraining.json"
    return world_of_recipe(recipe) if recipe.is_file() else None


def _oracle(
    experiment: Experiment, iterations: int, checkpoints: Sequence[Scored], log: Callable[[str], None]
) -> Mapping[str, Any] | None:
    """Measures against the world's oracle, kept beside the run's tables; None outside the mini worlds."""
    world = world_of(experiment)
    if world is None:
        return None
    ends = {label: next(c for c in checkpoints if c.label == label) for label in ("base", "M_0")}
    ends["last"] = checkpoints[-1]
    measures: dict[str, Any] = {
        label: _model_measures(experiment, scored.digest, world, log) for label, scored in ends.items()
    }
    rounds = []
    for number in range(iterations):
        table = {
            asset: read_table(experiment.store.table(asset, iteration_key(number)))
            for asset in ("reviewed_seed", "candidate_ledger", "preference_set")
        }
        preferences: pa.Table = table["preference_set"]
        new = preferences.filter(pc.equal(preferences["iteration"], number))
        rounds.append(
            {
                "seed_reviews": asdict(reviews_of_table(table["reviewed_seed"], world)),
                "generated_reviews": asdict(reviews_of_table(table["candidate_ledger"], world)),
                "precision": asdict(precision_of_ledger(table["candidate_ledger"], world)),
                "pairs": asdict(order_of_pairs(new, world)),
            }
        )
    return {**measures, "iterations": rounds}


def _model_measures(experiment: Experiment, digest: str, world: World, log: Callable[[str], None]) -> dict[str, Any]:
    """pass@k and reviewing of one model, measured once per study and sampling."""
    construction = experiment.settings.construction
    tasks = list(experiment.settings.evaluation.tasks)  # they decide the split
    sampled_as = json_digest([construction.response.model_dump(), construction.review.model_dump(), tasks])
    kept = experiment.store.base.parent / "measured" / f"{digest}_{sampled_as}.json"
    if not kept.exists():
        log(f"measuring {digest} against the world's oracle")
        manifest = next(
            experiment.store.checkpoint(asset, partition)
            for asset, partition in _places(experiment)
            if experiment.store.manifest(asset, partition).exists()
            and experiment.store.checkpoint(asset, partition).digest == digest
        )
        with local_folder(manifest) as folder:
            write_json(kept, measure_model(folder, digest, experiment.settings, experiment.prompts, world))
    return read_json(kept, f"measures of {digest}")


def _places(experiment: Experiment) -> list[tuple[str, str]]:
    last = [("dpo_checkpoint", iteration_key(n)) for n in reversed(range(experiment.settings.iterations))]
    return [("base_checkpoint", UNPARTITIONED), ("initial_checkpoint", UNPARTITIONED), *last]

"""One run of a study: an experiment or a control of it, with one random seed, through the same Dagster assets.

Every run has a store of its own, ``<store>/study/<experiment>/seed_<n>/<variant>``, and a Dagster instance that lasts
as long as the run. What is complete stays complete: a run that is started again goes on at the first job that had not
ended, and its half-done job finds the generations that it had made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lance_dagster.components.experiment import Experiment
from lance_dagster.errors import StudyError
from lance_dagster.settings import merged, parse_settings
from lance_dagster.storage.experiment_store import iteration_key, resolve_path
from lance_dagster.storage.files import json_digest, read_json, write_json
from lance_dagster.study.controls import variant_named

SEED_STRIDE = 1000  # between the random seeds of two runs, so that seeds which count up within one never meet


@dataclass(frozen=True)
class StudyRun:
    """Which run: the experiment's plain settings, the variant's name, the seed number, how many iterations.

    ``threads`` takes the place of model.threads, for runs beside each other on one machine.
    """

    experiment: str
    settings: Mapping[str, Any]
    root: Path
    variant: str
    seed: int
    iterations: int
    threads: int | None = None

    @property
    def label(self) -> str:
        return f"{self.experiment} {self.variant} seed {self.seed}"

    def build(self) -> Experiment:
        """The experiment of this run: the variant's settings over the experiment's, then the random seeds."""
        whole = parse_settings(dict(self.settings))
        study = f"{whole.store.rstrip('/')}/study/{self.experiment}"
        seeds = {
            "iterations": self.iterations,
            "store": f"{study}/seed_{self.seed}",
            "engine": {"cache": whole.engine.cache or f"{study}/completions"},  # M_0 is the same for all variants
            "construction": {"seed": whole.construction.seed + SEED_STRIDE * self.seed},
            "training": {"seed": whole.training.seed + SEED_STRIDE * self.seed},
        }
        changed = merged(merged(self.settings, variant_named(self.variant).settings), seeds)
        if self.threads is not None:
            changed = merged(changed, {"model": {"threads": self.threads}})
        return Experiment(self.variant, parse_settings(changed), self.root)

    @property
    def jobs(self) -> list[tuple[str, str | None]]:
        """(job, partition) in order."""
        loop = [("one_iteration", iteration_key(number)) for number in range(self.iterations)]
        return [("setup", None), *loop]


def execute(run: StudyRun, log: Callable[[str], None] = print) -> Experiment:
    """Run what is not done yet. Raises StudyError; what was completed before stays."""
    import dagster as dg

    from lance_dagster.components.console import console_logger
    from lance_dagster.components.self_evolution import experiment_definitions

    experiment = run.build()
    wanted = _decides(experiment)
    notes = {job: experiment.store.folder / "jobs" / f"{'_'.join(filter(None, job))}.json" for job in run.jobs}
    left = [job for job in run.jobs if not (notes[job].exists() and read_json(notes[job], run.label)["of"] == wanted)]
    if not left:
        log(f"{run.label}: complete")
        return experiment
    quiet = dg.Definitions(executor=dg.in_process_executor, loggers={"console": console_logger})
    definitions = dg.Definitions.merge(experiment_definitions(experiment), quiet)
    with dg.DagsterInstance.ephemeral() as instance:
        for job in run.jobs[run.jobs.index(left[0]) :]:  # what follows a job that runs again is made again
            name, partition = job
            log(f"{run.label}: {name} {partition or ''}".rstrip())
            result = definitions.resolve_job_def(f"{experiment.name}_{name}").execute_in_process(
                instance=instance,
                partition_key=partition,
                raise_on_error=False,
                run_config={"loggers": {"console": {"config": {"log_level": "WARNING"}}}},
            )
            if not result.success:
                raise StudyError(f"{run.label}, {name} {partition or ''}: {_reason(result)}")
            write_json(notes[job], {"of": wanted})
    return experiment


def _decides(experiment: Experiment) -> str:
    """Digest of what decides a run: settings (the number of iterations may grow), base model, seeds, tasks."""
    settings = experiment.settings.model_dump(mode="json")
    del settings["iterations"], settings["model"]["threads"], settings["engine"]["cache"]
    paths = [experiment.settings.model.path, experiment.settings.seed.instructions, experiment.settings.seed.reviews]
    paths += [experiment.settings.evaluation.include_path or ""]
    files = [found for path in paths if path for found in _files(Path(resolve_path(path, experiment.root)))]
    return json_digest([settings, [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]])


def _files(path: Path) -> list[Path]:
    """A file, or the files of a folder; nothing for what lies elsewhere, such as hub names."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.glob("*") if file.is_file()) if path.is_dir() else []


def _reason(result: Any) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            described = data.user_failure_data.description if data.user_failure_data else None
            return f"{event.step_key}: {described or data.error_display_string}"
    return "the run failed before its first step"

"""A study: an experiment and its controls over several random seeds, several runs beside each other.

Each run has a process of its own kind (see ``run``). Controls that take as many steps as the whole experiment wait for
it; everything else starts when a worker is free.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import click

from lance_dagster.errors import SettingsError
from lance_dagster.settings import parse_settings
from lance_dagster.storage.experiment_store import resolve_path
from lance_dagster.study.controls import WHOLE, Variant
from lance_dagster.study.outcome import Outcome, outcome
from lance_dagster.study.run import StudyRun, execute


@dataclass(frozen=True)
class Study:
    """What is run: an experiment's name, plain settings and project folder, its variants, seed numbers, iterations."""

    experiment: str
    settings: Mapping[str, Any]
    root: Path
    variants: Sequence[Variant]
    seeds: Sequence[int]
    iterations: int

    @property
    def folder(self) -> Path:
        """Where its runs and tables lie; SettingsError unless the store is a local folder."""
        store = resolve_path(parse_settings(dict(self.settings)).store, self.root)
        if "://" in store:
            raise SettingsError(
                f"a study needs a local store, not {store}: its runs work beside each other on its files"
            )
        return Path(store) / "study" / self.experiment

    def runs(self, threads: int | None = None) -> list[StudyRun]:
        """All runs, the whole experiment first: others wait for it."""
        ordered = sorted(self.variants, key=lambda variant: variant.name != WHOLE)
        return [
            StudyRun(self.experiment, self.settings, self.root, variant.name, seed, self.iterations, threads)
            for variant in ordered
            for seed in self.seeds
        ]


def run_study(study: Study, workers: int, log: Callable[[str], None]) -> list[Outcome]:
    """Run what is not done, ``workers`` at a time, and read all outcomes, in the order of ``study.runs``.

    A run that fails does not stop the others: those that need it are left out, and StudyError is raised at the end.
    """
    threads = None
    if workers > 1 and parse_settings(dict(study.settings)).model.device == "cpu":
        threads = max(1, (os.cpu_count() or 1) // workers)
    runs = study.runs(threads)
    waiting = [run for run in runs if _needs_whole(study, run)]
    outcomes: dict[tuple[str, int], Outcome] = {}
    failures: list[BaseException] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        running = {_submit(pool, study, run): run for run in runs if run not in waiting}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                run = running.pop(future)
                failure = future.exception()
                if failure is not None:
                    log(f"{run.label} failed: {failure}")
                    failures.append(failure)
                    continue
                outcomes[run.variant, run.seed] = future.result()
                log(f"{run.label}: {outcomes[run.variant, run.seed].last.mean:.3f}  ({len(outcomes)} of {len(runs)})")
                if run.variant == WHOLE:
                    freed = [each for each in waiting if each.seed == run.seed]
                    running |= {_submit(pool, study, each): each for each in freed}
    if failures:
        raise failures[0]
    return [outcomes[run.variant, run.seed] for run in runs]


def _needs_whole(study: Study, run: StudyRun) -> bool:
    return next(variant for variant in study.variants if variant.name == run.variant).needs_whole


def _submit(pool: ProcessPoolExecutor, study: Study, run: StudyRun) -> Future[Outcome]:
    what = next(variant.what for variant in study.variants if variant.name == run.variant)
    return pool.submit(_execute, run, what)


def end_with_parent() -> None:
    """In a worker: end at once when the study's own process ends in any way, instead of waiting for it for ever."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _execute(run: StudyRun, what: str) -> Outcome:
    """One run, in a worker process, without the progress bars that several of them would mix up."""
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    if run.threads is not None:
        torch.set_num_threads(run.threads)
    experiment = execute(run, click.echo)
    return outcome(experiment, run, what, click.echo)

"""Where the stages of a run work: all in the run's own process, or each in one of its own."""

from __future__ import annotations

from typing import Any

import dagster as dg

from lance_dagster.components.experiment import Experiment


def stage_executor(experiment: Experiment) -> dg.ExecutorDefinition:
    """The executor of an experiment's jobs.

    A process of its own per stage, one at a time, gives the GPU back entirely when the stage ends: caches, contexts
    and leaks of generation do not narrow training. It costs each stage its imports, so the embedded default does
    without.
    """
    if experiment.settings.executor == "in_process":
        return dg.in_process_executor
    configured: Any = dg.multiprocess_executor.configured(
        {"max_concurrent": 1, "start_method": {"spawn": {}}}, name="process_per_stage"
    )
    executor: dg.ExecutorDefinition = configured
    return executor

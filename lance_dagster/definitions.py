"""What Dagster loads: every experiment under defs/."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from lance_dagster.components.console import console_logger


@dg.definitions
def defs() -> dg.Definitions:
    """All shipped experiments. Stages of a run share one process, so libraries are imported once per run."""
    loaded = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(
        loaded, dg.Definitions(executor=dg.in_process_executor, loggers={"console": console_logger})
    )

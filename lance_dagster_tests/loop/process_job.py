"""A job that other processes can load again: the tiny experiment whose folder LANCE_TINY names, a process per stage."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from lance_dagster.components.experiment import Experiment
from lance_dagster.components.self_evolution import experiment_definitions
from lance_dagster.settings import parse_settings
from lance_dagster_tests.tiny import tiny_settings


def one_iteration() -> dg.JobDefinition:
    root = Path(os.environ["LANCE_TINY"])
    settings = parse_settings(tiny_settings(root, executor="process_per_stage"))
    return experiment_definitions(Experiment("tiny", settings, root)).resolve_job_def("tiny_one_iteration")

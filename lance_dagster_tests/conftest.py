"""Fixtures that are worth sharing: two iterations of the loop, run once for all tests that only look."""

from __future__ import annotations

import os

import pytest

from lance_dagster_tests.tiny import Tiny, tiny_experiment

if "PYTEST_XDIST_WORKER" in os.environ:  # modules run beside each other: torch must not take all cores in each
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny experiment after setup, iterations 000 and 001, and the report. Tests must not change it."""
    tiny = tiny_experiment(tmp_path_factory.mktemp("evolved"))
    assert tiny.run("setup").success
    assert tiny.run("one_iteration", "000").success
    assert tiny.run("one_iteration", "001").success
    assert tiny.run("report").success
    return tiny

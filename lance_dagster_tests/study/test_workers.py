"""The processes that a study's runs have."""

from __future__ import annotations

from pathlib import Path

import psutil

from lance_dagster_tests.storage.killing import kill

ONE_WORKER = """
import os, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from lance_dagster.study.study import end_with_parent

pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent)
Path(sys.argv[1]).write_text(str(pool.submit(os.getpid).result()))
hang()
"""


def test_a_worker_does_not_outlive_a_study_that_was_killed(tmp_path: Path) -> None:
    kill(ONE_WORKER, tmp_path / "worker")
    worker = int((tmp_path / "worker").read_text())
    if psutil.pid_exists(worker):
        _, alive = psutil.wait_procs([psutil.Process(worker)], timeout=30)
        assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)  # nobody here waits for a grandchild

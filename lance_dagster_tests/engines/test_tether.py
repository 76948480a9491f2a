"""Processes that a library starts end with the program that loaded it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from lance_dagster.engines.tether import guarded, stop
from lance_dagster_tests.storage.killing import kill

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
KILLED = f"""
import subprocess, sys
from pathlib import Path
from lance_dagster.engines.tether import guarded

with guarded():
    child = subprocess.Popen({SLEEPER!r})
Path(sys.argv[1]).write_text(str(child.pid))
hang()
"""


def ended(pid: int) -> bool:
    if not psutil.pid_exists(pid):
        return True
    _, alive = psutil.wait_procs([psutil.Process(pid)], timeout=30)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def test_they_end_when_the_program_is_killed(tmp_path: Path) -> None:
    kill(KILLED, tmp_path / "child")
    assert ended(int((tmp_path / "child").read_text()))


def test_they_end_when_the_guard_is_told_to_stop_and_others_stay() -> None:
    other = subprocess.Popen(SLEEPER)
    with guarded() as guard:
        child = subprocess.Popen(SLEEPER)
    stop(guard)
    assert child.wait(timeout=5) != 0
    assert other.poll() is None
    other.kill()
    other.wait()

"""Programs that are killed in the middle of a write."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lance_dagster

# What a program runs where it is to be killed.
HANG = """
import time
def hang(*_, **__):
    print("ready", flush=True)
    time.sleep(600)
"""


@contextmanager
def running(program: str, *arguments: object) -> Iterator[None]:
    """A Python program that runs until the block ends, from its line "ready" on; then it is killed with SIGKILL."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANG + program, *map(str, arguments)],
        cwd=Path(lance_dagster.__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL  # it did not end before


def kill(program: str, *arguments: object) -> None:
    """Run a program up to its line "ready" and kill it there."""
    with running(program, *arguments):
        pass

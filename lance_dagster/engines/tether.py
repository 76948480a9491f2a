"""Programs that do not outlive the one that started them, even if that one is killed.

``python -m lance_dagster.engines.tether COMMAND …`` runs the command in a process group of its own and ends the whole
group when standard input closes, which the system does for a parent that dies in any way. ``… tether --marked MARK``
does the same for processes that a library starts: those with the mark in their environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO
from uuid import uuid4

import psutil

_MARK = "LANCE_TETHER"
_SECONDS_TO_END = 10.0


def start(command: list[str], environment: dict[str, str], log: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """Start ``command`` tethered to this process. Closing ``stdin`` of the result ends it."""
    return subprocess.Popen(
        [sys.executable, "-m", "lance_dagster.engines.tether", *command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C goes to the parent alone, which then closes the tether
    )


@contextmanager
def guarded() -> Iterator[subprocess.Popen[bytes]]:
    """Processes that a library starts in this block are ended with this one, or by ``stop`` of what is given.

    They are known by a variable of their environment, so they must be started as new programs (spawn), not by fork.
    """
    mark = uuid4().hex
    guard = start(["--marked", mark], dict(os.environ), subprocess.DEVNULL)
    os.environ[_MARK] = mark
    try:
        yield guard
    except BaseException:
        stop(guard)
        raise
    finally:
        del os.environ[_MARK]


def stop(tethered: subprocess.Popen[bytes]) -> None:
    """End the program, or what it guards, and wait until all of it is gone."""
    assert tethered.stdin is not None
    tethered.stdin.close()
    tethered.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            # The tracker serves all that this process ever spawns, and ends by itself.
            if process.environ().get(_MARK) == mark and not any("resource_tracker" in a for a in process.cmdline()):
                yield process


def _end_marked(mark: str) -> int:
    sys.stdin.buffer.read()
    for signal_process in (psutil.Process.terminate, psutil.Process.kill):
        found = list(_marked(mark))
        for process in found:
            with contextlib.suppress(psutil.Error):
                signal_process(process)
        psutil.wait_procs(found, timeout=_SECONDS_TO_END)
    return 0


def main() -> int:
    if sys.argv[1] == "--marked":
        return _end_marked(sys.argv[2])
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        sys.stdin.buffer.read()
        _signal(child.pid, signal.SIGTERM)
        time.sleep(_SECONDS_TO_END)
        _signal(child.pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    _signal(child.pid, signal.SIGKILL)  # processes that the command left behind
    return code


if __name__ == "__main__":
    sys.exit(main())

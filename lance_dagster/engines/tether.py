"""A program that does not outlive the one that started it, even if that one is killed.

``python -m lance_dagster.engines.tether COMMAND …`` runs the command in a process group of its own and ends the whole
group when standard input closes, which the system does for a parent that dies in any way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO

_SECONDS_TO_END = 10.0


def start(command: list[str], environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start ``command`` tethered to this process. Closing ``stdin`` of the result ends it."""
    return subprocess.Popen(
        [sys.executable, "-m", "lance_dagster.engines.tether", *command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C goes to the parent alone, which then closes the tether
    )


def stop(tethered: subprocess.Popen[bytes]) -> None:
    """End the program and wait until its whole group is gone."""
    assert tethered.stdin is not None
    tethered.stdin.close()
    tethered.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def main() -> int:
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

"""A vLLM server for one checkpoint, on a free port of this machine, for as long as a block lasts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lance_dagster.engines import tether
from lance_dagster.engines.chat_prompts import ChatPrompts
from lance_dagster.engines.vllm_launch import vllm_environment, vllm_launch
from lance_dagster.errors import GenerationError
from lance_dagster.settings import EngineSettings, ModelSettings

_LAST_LINES = 2000  # characters of the server's log that go into an error


@dataclass(frozen=True)
class VllmServer:
    """``url`` ends in /v1. ``check`` raises GenerationError once the server has ended."""

    url: str
    check: Callable[[], None]


@contextmanager
def vllm_server(folder: Path, name: str, model: ModelSettings, engine: EngineSettings) -> Iterator[VllmServer]:
    """A server that answers under the model name ``name``.

    It ends with the block, and with this process if that is killed. Raises GenerationError with the end of its log
    where it does not start within ``engine.openai.start_timeout_s``.
    """
    context = ChatPrompts(folder, engine.vllm.max_context).context
    with (
        vllm_environment(model),
        vllm_launch(folder, model, engine, context) as launch,
        tempfile.TemporaryFile(prefix="lance_vllm_", suffix=".log") as log,
    ):
        port = _free_port()
        # `python -m`, because vLLM's own command looks for a package called vllm, and the CPU build has another name
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(launch.folder)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name, *launch.command_line()]
        process = tether.start(command, dict(os.environ), log)

        def check() -> None:
            if process.poll() is not None:
                log.flush()
                end = os.pread(log.fileno(), _LAST_LINES, max(0, os.fstat(log.fileno()).st_size - _LAST_LINES))
                raise GenerationError(
                    f"the vLLM server of model {name} ended with status {process.returncode}. The last it said: "
                    + end.decode(errors="replace")
                )

        try:
            _wait(f"http://127.0.0.1:{port}/health", engine.openai.start_timeout_s, check, process)
            yield VllmServer(f"http://127.0.0.1:{port}/v1", check)
        finally:
            tether.stop(process)


def _wait(url: str, seconds: float, check: Callable[[], None], process: subprocess.Popen[bytes]) -> None:
    import httpx

    end = time.monotonic() + seconds
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < end:
            check()
            try:
                if client.get(url).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
    raise GenerationError(
        f"the vLLM server (process {process.pid}) did not answer within {seconds:g} s; raise "
        "engine.openai.start_timeout_s if the model is large"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

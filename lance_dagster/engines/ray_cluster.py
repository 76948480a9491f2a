"""The Ray cluster of ``engine.ray``: generation and the similarity join run on the same one."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from importlib.util import find_spec

from lance_dagster.errors import ClusterError
from lance_dagster.settings import RaySettings


def join_cluster(settings: RaySettings, stack: ExitStack) -> None:
    """Connect to the cluster of the settings, or start one on this machine that ends with ``stack``.

    Raises ClusterError where Ray is not installed or no cluster is at the address.
    """
    if find_spec("ray") is None:
        raise ClusterError(
            "the settings ask for Ray, which is not installed: pip install 'lance-dagster[ray]' here and on every node"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    where = {"address": settings.address} if settings.address else {"address": "local", "include_dashboard": False}
    try:
        _knock(settings.address)
        ray.init(**where, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"engine.ray.address: no Ray cluster at {settings.address} ({error}). `ray status` on its head node shows "
            "whether it runs; leave the address out to start one on this machine."
        ) from error
    stack.callback(ray.shutdown)


def _knock(address: str | None) -> None:
    """OSError at once where nothing listens; Ray itself tries for minutes and then ends the program."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()

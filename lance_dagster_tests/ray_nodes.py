"""A Ray cluster of two nodes in one machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def two_nodes(**system: Any) -> Iterator[Any]:
    """Two nodes with one CPU each; ``system`` are Ray's own settings."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": system}
    )
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()

"""The pool of a similarity join on a Ray cluster: all its CPUs compare, and the indexes take no memory of this process.

A shelf is an object of Ray's store; Ray keeps it on the node that made it, spills it to that node's disk when the store
is full, and makes it again, from its words, if the node is lost. A block of new rows is sent to all shelves, which are
looked through at the same time, where they lie if a CPU is free there. What stays on this machine are the words of all
rows as numbers: in this process, and in its node's store, which spills too.
https://docs.ray.io/en/latest/ray-core/objects/object-spilling.html

Tasks over single objects are used rather than Ray Data, whose data sets cannot grow while rows are decided one block
after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

from lance_dagster.construction.filters.shelves import Comparison, Flags, Nearest, Shelf
from lance_dagster.construction.filters.words import Ints, WordRows
from lance_dagster.errors import ClusterError, LanceError
from lance_dagster.settings import RaySettings

_SECONDS_BETWEEN_LINES = 30.0


class RayShelves:
    """Shelves of the cluster that the program has joined (``engines/ray_cluster.py``).

    Raises ClusterError if the cluster stops, or does nothing for ``engine.ray.start_timeout_s``.
    """

    def __init__(self, settings: RaySettings, log: Callable[[str], None]) -> None:
        import ray

        self._patience, self._log = settings.start_timeout_s, log
        self._put, self._merge, self._look_up = (
            ray.remote(function).options(scheduling_strategy=where)
            for function, where in ((_put, "SPREAD"), (_merge, "DEFAULT"), (_look_up, "DEFAULT"))
        )

    def put(self, comparison: Comparison, rows: WordRows, numbers: Ints, kept: Flags) -> Any:
        return self._put.remote(comparison, rows, numbers, kept)

    def merge(self, handles: Sequence[Any]) -> Any:
        return self._merge.remote(*handles)

    def nearest(self, handles: Sequence[Any], rows: WordRows) -> Iterator[Nearest]:
        import ray

        block = ray.put(rows)
        running = [self._look_up.remote(handle, block) for handle in handles]
        while running:
            (done, *_), running = self._wait(running)
            yield from _result(done)

    def _wait(self, running: list[Any]) -> tuple[list[Any], list[Any]]:
        """At least one that is done, and the others."""
        import ray

        started = monotonic()
        while True:
            left = self._patience - (monotonic() - started)
            done, others = ray.wait(running, num_returns=1, timeout=max(0.0, min(left, _SECONDS_BETWEEN_LINES)))
            if done:
                return done, others
            free, there = (
                resources.get("CPU", 0) for resources in (ray.available_resources(), ray.cluster_resources())
            )
            waited, cpus = f"{monotonic() - started:.0f} s", f"{free:g} of its {there:g} CPUs are free"
            if monotonic() - started >= self._patience:
                raise ClusterError(
                    f"the ROUGE-L comparison got nothing done on the Ray cluster for {waited}: {cpus}. Wait until "
                    "others have ended, or raise engine.ray.start_timeout_s; with engine.ray.rouge_join: false rows "
                    "are compared in this process."
                )
            self._log(f"ROUGE-L waits for the Ray cluster since {waited}: {cpus}")


def _result(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except LanceError as error:  # of the comparison; Ray raises it as an error of both types
        raise (error.cause if isinstance(error, RayTaskError) else error) from error
    except RayError as error:
        raise ClusterError(
            f"the ROUGE-L comparison stopped on the Ray cluster: {error}. Materialise again; with "
            "engine.ray.rouge_join: false rows are compared in this process."
        ) from error


def _put(comparison: Comparison, rows: WordRows, numbers: Ints, kept: Flags) -> Shelf:
    return _ready(Shelf.of(comparison, rows, numbers, kept))


def _merge(*parts: Shelf) -> Shelf:
    return _ready(Shelf.merged(parts))


def _ready(shelf: Shelf) -> Shelf:
    """With what a shelf in memory works out at its first look-up: here each look-up has a copy of its own."""
    shelf.index.prepare()
    return shelf


def _look_up(shelf: Shelf, rows: WordRows) -> list[Nearest]:
    return list(shelf.nearest(rows))

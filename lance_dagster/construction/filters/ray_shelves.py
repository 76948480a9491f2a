"""The pool of a similarity join in the object store of a Ray cluster: more rows than one machine holds or compares.

A shelf is an object of the store; Ray keeps it on the node that made it, spills it to that node's disk when the store
is full, and makes it again if the node is lost. A block of new rows is sent to all shelves, each of which is looked
through where it lies. Tasks over single objects are used rather than Ray Data, whose data sets cannot grow while rows
are decided one block after another. https://docs.ray.io/en/latest/ray-core/objects/object-spilling.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lance_dagster.construction.filters.shelves import Comparison, Flags, Nearest, Shelf
from lance_dagster.construction.filters.words import Ints, WordRows
from lance_dagster.errors import ArtifactError


class RayShelves:
    """Shelves of the cluster that the program has joined (``engines/ray_cluster.py``)."""

    def __init__(self) -> None:
        import ray

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
        from ray.exceptions import RayError

        block = ray.put(rows)
        running = [self._look_up.remote(handle, block) for handle in handles]
        while running:
            (done, *_), running = ray.wait(running, num_returns=1)
            try:
                yield from ray.get(done)
            except RayError as error:
                raise ArtifactError(
                    f"the ROUGE-L comparison stopped on the Ray cluster: {error}. Materialise again; with "
                    "engine.ray.rouge_join: false it runs in this process."
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

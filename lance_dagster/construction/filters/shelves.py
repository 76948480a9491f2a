"""The pool of kept rows, in shelves of up to 32,768 rows with an index each, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lance_dagster.construction.filters.candidate_pairs import Bound, Index
from lance_dagster.construction.filters.rouge_l import Floats, Pairs, Statistic, similarities
from lance_dagster.construction.filters.words import Ints, WordRows

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """How rows are compared, all numbered by one vocabulary under one rule of tokenisation.

    Rows above a threshold are dropped under it; similarities above ``floor``, which is at most the lowest threshold,
    are reported. Deciding under several thresholds at once costs little more than under the lowest.
    """

    statistic: Statistic
    thresholds: tuple[float, ...]
    floor: float

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= min(self.thresholds):
            raise ValueError(f"the floor {self.floor} must lie between 0 and the threshold {min(self.thresholds)}")

    @cached_property
    def bound(self) -> Bound:
        return Bound(self.statistic, self.floor)

    def similar(self, left: WordRows, right: WordRows, possible: Pairs) -> tuple[Pairs, Floats]:
        """The pairs above the floor, and their similarities."""
        values = similarities(left, right, possible, self.statistic)
        above = values > self.floor
        return Pairs(possible.left[above], possible.right[above]), values[above]


class Nearest(NamedTuple):
    """For rows, by position, the highest similarity with a row of a shelf, and the number of the first such row.

    ``under``: the position of the threshold under which the rows of the shelf were kept that this is about.
    """

    under: int
    rows: Ints
    values: Floats
    numbers: Ints


@dataclass(frozen=True)
class Shelf:
    """Rows of the pool, their numbers, and the index over them. ``kept``: (thresholds, rows), any of them per row."""

    comparison: Comparison
    rows: WordRows
    numbers: Ints
    kept: Flags
    index: Index

    @classmethod
    def of(cls, comparison: Comparison, rows: WordRows, numbers: Ints, kept: Flags) -> Shelf:
        return cls(comparison, rows, numbers, kept, Index(comparison.bound.entries(rows), comparison.bound))

    @classmethod
    def merged(cls, parts: Sequence[Shelf]) -> Shelf:
        """One shelf with the rows of several."""
        numbers = np.concatenate([part.numbers for part in parts])
        kept = np.concatenate([part.kept for part in parts], axis=1)
        return cls.of(parts[0].comparison, WordRows.joined([part.rows for part in parts]), numbers, kept)

    def nearest(self, rows: WordRows) -> Iterator[Nearest]:
        """What the shelf has above the floor, in several parts; a row may be in more than one."""
        for possible in self.index.look_up(self.comparison.bound.entries(rows)):
            pairs, values = self.comparison.similar(rows, self.rows, possible)
            order = np.lexsort((pairs.right, -values, pairs.left))
            for under in range(len(self.comparison.thresholds)):
                of_kept = order[self.kept[under, pairs.right[order]]]
                best = of_kept[np.flatnonzero(np.diff(pairs.left[of_kept], prepend=-1))]
                yield Nearest(under, pairs.left[best], values[best], self.numbers[pairs.right[best]])


class Shelves(Protocol):
    """Where shelves lie. A handle is whatever names one there."""

    def put(self, comparison: Comparison, rows: WordRows, numbers: Ints, kept: Flags) -> Any:
        """Index some rows; returns the handle."""

    def merge(self, handles: Sequence[Any]) -> Any:
        """One shelf in place of several."""

    def nearest(self, handles: Sequence[Any], rows: WordRows) -> Iterator[Nearest]:
        """What all these shelves have for the rows, in any order."""


class InMemory:
    """Shelves of this process."""

    def put(self, comparison: Comparison, rows: WordRows, numbers: Ints, kept: Flags) -> Shelf:
        return Shelf.of(comparison, rows, numbers, kept)

    def merge(self, handles: Sequence[Shelf]) -> Shelf:
        return Shelf.merged(handles)

    def nearest(self, handles: Sequence[Shelf], rows: WordRows) -> Iterator[Nearest]:
        for shelf in handles:
            yield from shelf.nearest(rows)

"""Dropping rows that resemble an earlier kept row, exactly, whatever the number of rows.

Rows come in order; each is compared with all kept rows before it, and kept unless one of them is more similar than the
threshold. What ``candidate_pairs`` rules out is not compared; every other pair is, exactly (``rouge_l``). Nothing is
compared with a dropped row, so rows that all resemble each other cost no more than rows that do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lance_dagster.construction.filters.candidate_pairs import Index
from lance_dagster.construction.filters.rouge_l import Floats, Pairs
from lance_dagster.construction.filters.shelves import Comparison, Flags, InMemory, Nearest, Shelf, Shelves
from lance_dagster.construction.filters.words import Ints, WordRows

_BLOCK = 4096  # rows that are compared with the pool at a time
_LEAF = 512  # rows that are compared with each other at once
_MERGED = 8  # shelves of a size become one of the next
_LARGEST_SHELF = 1 << 15  # rows
_SMALL_GROUP = 256  # rows of a group up to which all its pairs are compared
_GROUP_PAIRS = 1 << 18  # at a time: bounds memory

NOBODY = -1


@dataclass(frozen=True)
class Verdicts:
    """For each threshold one entry per row: all arrays are (thresholds, rows).

    ``kept``: no kept row before it is more similar than the threshold. ``value``: the highest similarity with a kept
    row before it, 0 if it is not above the floor. ``against``: the number of that row, the first of equals, or
    ``NOBODY``.
    """

    kept: Flags
    value: Floats
    against: Ints

    @classmethod
    def undecided(cls, thresholds: int, rows: int) -> Verdicts:
        shape = (thresholds, rows)
        return cls(np.ones(shape, dtype=bool), np.zeros(shape), np.full(shape, NOBODY, dtype=np.int64))

    def of(self, rows: slice | Ints) -> Verdicts:
        """Those of some rows."""
        return Verdicts(self.kept[:, rows], self.value[:, rows], self.against[:, rows])

    def put(self, rows: slice | Ints, others: Verdicts) -> None:
        """Take over what was decided on some rows."""
        self.kept[:, rows], self.value[:, rows], self.against[:, rows] = others.kept, others.value, others.against

    def meet(self, nearest: Nearest, comparison: Comparison) -> None:
        """Decide on rows by their nearest ones on a shelf; in whatever order shelves come, the outcome is the same."""
        under, i, highest, number = nearest
        kept, value, against = self.kept[under], self.value[under], self.against[under]
        better = (highest > value[i]) | ((highest == value[i]) & (number < against[i]))
        value[i[better]], against[i[better]] = highest[better], number[better]
        kept[i[highest > comparison.thresholds[under]]] = False

    def settle(self, later: Ints, earlier: Ints, values: Floats, numbers: Ints, comparison: Comparison) -> None:
        """Decide on rows by all their similar pairs with rows before them; ``numbers`` names the rows."""
        order = np.lexsort((earlier, later))
        pairs = list(zip(later[order].tolist(), earlier[order].tolist(), values[order].tolist(), strict=True))
        for threshold, kept, value, against in zip(
            comparison.thresholds, self.kept, self.value, self.against, strict=True
        ):
            for i, j, similarity in pairs:
                if kept[j]:  # decided: all pairs of j came before
                    if similarity > value[i]:
                        value[i], against[i] = similarity, numbers[j]
                    if similarity > threshold:
                        kept[i] = False


class SimilarityJoin:
    """A growing pool of kept rows, which later rows are compared with; it lies where ``shelves`` says."""

    def __init__(self, comparison: Comparison, shelves: Shelves | None = None) -> None:
        self._comparison = comparison
        self._shelves = InMemory() if shelves is None else shelves
        self._pool: list[tuple[Any, int]] = []  # shelves, and how many rows are on each

    def add(self, rows: WordRows, numbers: Ints) -> None:
        """Rows that are kept whatever they resemble. ``numbers`` name them in verdicts, and grow from row to row."""
        for start in range(0, len(rows), _LARGEST_SHELF):
            part = np.arange(start, min(start + _LARGEST_SHELF, len(rows)))
            kept = np.ones((len(self._comparison.thresholds), len(part)), dtype=bool)
            self._put_on_shelf(rows.take(part), numbers[part], kept)

    def keep_first(self, rows: WordRows, positions: Ints, numbers: Ints) -> Verdicts:
        """Decide on the rows at ``positions``, in that order. Those that are kept join the pool under their numbers."""
        thresholds = len(self._comparison.thresholds)
        verdicts = Verdicts.undecided(thresholds, len(positions))
        for start in range(0, len(positions), _BLOCK):
            block = slice(start, min(start + _BLOCK, len(positions)))
            here, own = rows.take(positions[block]), Verdicts.undecided(thresholds, block.stop - start)
            for nearest in self._shelves.nearest([shelf for shelf, _ in self._pool], here):
                own.meet(nearest, self._comparison)
            self._compare_within(here, np.arange(len(here)), numbers[block], own)
            kept = np.flatnonzero(own.kept.any(axis=0))
            self._put_on_shelf(here.take(kept), numbers[block][kept], own.kept[:, kept])
            verdicts.put(block, own)
        return verdicts

    def _compare_within(self, rows: WordRows, part: Ints, numbers: Ints, verdicts: Verdicts) -> None:
        """The first half of a part, then the second with what is kept of the first, then the second half."""
        if len(part) <= _LEAF:
            self._compare_leaf(rows, part, numbers, verdicts)
            return
        first, second = part[: len(part) // 2], part[len(part) // 2 :]
        self._compare_within(rows, first, numbers, verdicts)
        kept = first[verdicts.kept[:, first].any(axis=0)]
        shelf = Shelf.of(self._comparison, rows.take(kept), numbers[kept], verdicts.kept[:, kept])
        for nearest in shelf.nearest(rows.take(second)):
            verdicts.meet(nearest._replace(rows=second[nearest.rows]), self._comparison)
        self._compare_within(rows, second, numbers, verdicts)

    def _compare_leaf(self, rows: WordRows, part: Ints, numbers: Ints, verdicts: Verdicts) -> None:
        here, bound = rows.take(part), self._comparison.bound
        entries = bound.entries(here)
        for_kept = [
            Pairs(pairs.left[candidate], pairs.right[candidate])
            for pairs in Index(entries, bound).look_up(entries, earlier_only=True)
            if (candidate := verdicts.kept[:, part[pairs.right]].any(axis=0)).any()
        ]
        if not for_kept:
            return
        possible = Pairs(*(np.concatenate(side) for side in zip(*for_kept, strict=True)))
        pairs, values = self._comparison.similar(here, here, possible)
        verdicts.settle(part[pairs.left], part[pairs.right], values, numbers, self._comparison)

    def _put_on_shelf(self, rows: WordRows, numbers: Ints, kept: Flags) -> None:
        """Shelves stay few: as soon as eight are of a size, they become one."""
        if not len(rows):
            return
        self._pool.append((self._shelves.put(self._comparison, rows, numbers, kept), len(rows)))
        while len(self._pool) >= _MERGED:
            last = self._pool[-_MERGED:]
            sizes = [size for _, size in last]
            if max(sizes) >= _MERGED * min(sizes) or sum(sizes) > _LARGEST_SHELF:
                return
            self._pool[-_MERGED:] = [(self._shelves.merge([shelf for shelf, _ in last]), sum(sizes))]


def keep_first_by_group(
    comparison: Comparison, pool: WordRows, pool_groups: Ints, rows: WordRows, positions: Ints, groups: Ints
) -> Verdicts:
    """As ``SimilarityJoin.keep_first``, but a row is compared with rows of its own group alone.

    ``groups`` are those of the rows at ``positions``. Rows of ``pool`` are kept whatever they resemble. Verdicts number
    the pool from 0 and the decided rows behind it.
    """
    group = np.concatenate([pool_groups, groups])
    verdicts = Verdicts.undecided(len(comparison.thresholds), len(group))

    def take(members: Ints) -> WordRows:
        return WordRows.joined(
            [pool.take(members[members < len(pool)]), rows.take(positions[members[members >= len(pool)] - len(pool)])]
        )

    for members in _small_groups(group):
        members = np.sort(members)  # the pool comes first, as in what is taken
        here = take(members)
        possible = _pairs_within(group[members], int((members < len(pool)).sum()))
        pairs, values = comparison.similar(here, here, possible)
        verdicts.settle(members[pairs.left], members[pairs.right], values, np.arange(len(group)), comparison)
    for members in _large_groups(group):
        there, own = members[members < len(pool)], members[members >= len(pool)]
        join = SimilarityJoin(comparison)
        join.add(pool.take(there), there)
        verdicts.put(own, join.keep_first(rows, positions[own - len(pool)], own))
    return verdicts.of(slice(len(pool), None))


def _sorted_groups(group: Ints) -> tuple[Ints, Ints]:
    """Rows in the order of their groups, and where each group starts, with the end."""
    order = np.argsort(group, kind="stable")
    return order, np.concatenate([[0], np.flatnonzero(np.diff(group[order])) + 1, [len(order)]]).astype(np.int64)


def _large_groups(group: Ints) -> Iterator[Ints]:
    order, edges = _sorted_groups(group)
    for start, stop in pairwise(edges.tolist()):
        if stop - start > _SMALL_GROUP:
            yield order[start:stop]


def _small_groups(group: Ints) -> Iterator[Ints]:
    """Runs of rows of several groups, each group whole and in order, with about ``_GROUP_PAIRS`` pairs at most."""
    order, edges = _sorted_groups(group)
    sizes = np.diff(edges)
    small = np.repeat(sizes <= _SMALL_GROUP, sizes)
    order, sizes = order[small], sizes[sizes <= _SMALL_GROUP]
    part = np.repeat(np.cumsum(sizes**2) // _GROUP_PAIRS, sizes)
    yield from (run for run in np.split(order, np.flatnonzero(np.diff(part)) + 1) if len(run))


def _pairs_within(group: Ints, pool: int) -> Pairs:
    """All (later, earlier) pairs of rows of the same group, but for those of two of the first ``pool`` rows."""
    order = np.argsort(group, kind="stable")
    later, earlier = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for distance in range(1, len(order)):
        same = group[order[distance:]] == group[order[:-distance]]
        if not same.any():
            break
        wanted = same & (order[distance:] >= pool)
        later.append(order[distance:][wanted])
        earlier.append(order[:-distance][wanted])
    return Pairs(np.concatenate(later), np.concatenate(earlier))

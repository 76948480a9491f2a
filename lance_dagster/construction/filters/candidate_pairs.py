"""Which pairs of rows can be similar enough at all: an upper bound on their common words by sparse matrix products.

A longest common subsequence is never longer than the words that two texts share, each counted as often as both have
it. Rows are therefore sets of (word, how-many-eth occurrence), ordered from rare to frequent, and what a row must
share with another is known from the two lengths. A row that must share k of its entries cannot avoid sharing one
outside its k - 1 most frequent ones, so these are left out of the product (prefix filtering: Chaudhuri et al. 2006;
Bayardo et al. 2007); for the entries that are left out the bound assumes that all are shared. No pair is missed, few
are named in vain, and the products stay sparse, because no row is looked up by its most frequent words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from lance_dagster.construction.filters.rouge_l import Floats, Pairs, Statistic
from lance_dagster.construction.filters.words import SENTENCE_END_NUMBER, Ints, WordRows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_BAND_RATIO = 1.1  # lengths within a band of rows that are multiplied together
_BAND_ROWS = 512  # but at least as many rows: a product has a price of its own
_SHARE_LEFT_OUT = 0.85  # of the entries that may be left out: measured, benchmarks/rouge_join.py
_PRODUCT_TERMS = 1 << 24  # of a product at a time: bounds memory
_OCCURRENCES = 1 << 24  # of one word in one row, at most
_ROUNDING = 1e-9
_PAIRS = 1 << 18  # that are named at a time
_ABOVE_ALL_RANKS = np.int32(np.iinfo(np.int32).max)

_Band = tuple[int, int]  # first and last row, of those sorted by length


@dataclass(frozen=True)
class Bound:
    """How many entries two rows must share for a similarity above ``floor``."""

    statistic: Statistic
    floor: float

    def needed(self, m: Ints | int, n: Ints | int) -> Floats:
        """More than this many, for rows with m and n entries."""
        if self.statistic == "f":
            return np.asarray(self.floor * (np.asarray(m) + n) / 2)
        return np.asarray(self.floor * np.minimum(m, n))

    def entries(self, rows: WordRows) -> Entries:
        """The entries of rows; the union statistic counts distinct words."""
        if self.statistic != "union_lcs":
            return Entries.of(rows)
        return Entries.of(rows, distinct=True, without=SENTENCE_END_NUMBER)

    def may_leave_out(self, lengths: Ints) -> Ints:
        """Entries of a row that may be left out, whatever the partner; unless ``f``, one that is not shorter."""
        # The shortest partner that can be similar enough by F has m * floor / (2 - floor) entries.
        least = lengths * self.floor / (2 - self.floor if self.statistic == "f" else 1)
        out: Ints = np.maximum(0, np.floor(_SHARE_LEFT_OUT * (np.ceil(least - _ROUNDING) - 1))).astype(np.int64)
        return out


@dataclass(frozen=True)
class Entries:
    """Rows as sets: the (word, occurrence) keys of row i are ``keys[offsets[i]:offsets[i + 1]]``."""

    keys: Ints
    offsets: Ints

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)

    @classmethod
    def of(cls, rows: WordRows, distinct: bool = False, without: int | None = None) -> Entries:
        row = np.repeat(np.arange(len(rows)), rows.lengths)
        flat = rows.flat.astype(np.int64)
        if without is not None:
            row, flat = row[flat != without], flat[flat != without]
        order = np.argsort((row << 32) | flat, kind="stable")
        row, flat = row[order], flat[order]
        first = np.ones(len(flat), dtype=bool)
        first[1:] = (flat[1:] != flat[:-1]) | (row[1:] != row[:-1])
        if distinct:
            row, keys = row[first], flat[first] * _OCCURRENCES
        else:
            start = np.maximum.accumulate(np.where(first, np.arange(len(flat)), 0))
            keys = flat * _OCCURRENCES + np.arange(len(flat)) - start
        counts = np.bincount(row, minlength=len(rows))
        return cls(keys, np.concatenate([[0], np.cumsum(counts)]))


@dataclass(frozen=True)
class _Ranked:
    """Entries sorted by length, each row from rare to frequent; entries that the index has not are -1, the rarest."""

    order: Ints  # position of each row in the table that it came from
    ranks: npt.NDArray[np.int32]
    offsets: Ints
    bands: list[_Band]

    @cached_property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)


class Index:
    """Rows that others are looked up in."""

    def __init__(self, entries: Entries, bound: Bound) -> None:
        self._bound = bound
        self._keys, inverse, frequency = np.unique(entries.keys, return_inverse=True, return_counts=True)
        by_frequency = np.argsort(frequency, kind="stable")
        self._rank = np.empty(len(by_frequency), dtype=np.int64)
        self._rank[by_frequency] = np.arange(len(by_frequency))
        self._rows = _ranked(self._rank[inverse], entries)
        self._factors: dict[tuple[_Band, bool], _Factor] = {}

    def prepare(self) -> None:
        """Work out now what look-ups would work out when they need it; unless the statistic is ``f``, twice as much."""
        for band in self._rows.bands:
            for thin in (True,) if self._bound.statistic == "f" else (False, True):
                self._factor(band, thin)

    def look_up(self, entries: Entries, earlier_only: bool = False) -> Iterator[Pairs]:
        """All pairs (row of ``entries``, row of the index) that can be similar enough, and some that are not.

        ``earlier_only``: the rows are the index's own, and each is paired with rows before it.
        """
        if not len(self._keys):
            return
        found = np.minimum(np.searchsorted(self._keys, entries.keys), len(self._keys) - 1)
        left = _ranked(np.where(self._keys[found] == entries.keys, self._rank[found], -1), entries)
        sides: dict[tuple[_Band, bool], _Side] = {}
        parts: list[Pairs] = []
        named = 0
        for left_band in left.bands:
            for right_band in self._rows.bands:
                for pairs in self._multiply(left, left_band, right_band, sides):
                    parts.append(_before(pairs) if earlier_only else pairs)
                    named += len(parts[-1].left)
                    if named > _PAIRS:
                        yield _together(parts)
                        parts, named = [], 0
        yield _together(parts)

    def _multiply(
        self, left: _Ranked, left_band: _Band, right_band: _Band, sides: dict[tuple[_Band, bool], _Side]
    ) -> Iterator[Pairs]:
        m, n = left.lengths[left_band[0] : left_band[1]], self._rows.lengths[right_band[0] : right_band[1]]
        shortest, longest = (m[0], n[0]), (m[-1], n[-1])
        closest = (min(longest[0], max(shortest[0], n[-1])), min(longest[1], max(shortest[1], m[-1])))
        if min(closest) <= self._bound.needed(*closest) - _ROUNDING:
            return  # lengths too far apart
        thin_left, thin_right = True, True
        if self._bound.statistic != "f":  # what is needed goes by the shorter row alone
            thin_left, thin_right = longest[0] <= shortest[1], longest[1] <= shortest[0]
            thin_right = thin_right and not thin_left
        if (left_band, thin_left) not in sides:
            sides[left_band, thin_left] = self._side(left, left_band, thin_left)
        one, other = sides[left_band, thin_left], self._factor(right_band, thin_right)
        most_left_out = max(one.left_out.max(), other.left_out.max())
        least = self._bound.needed(shortest[0], shortest[1]) - most_left_out - _ROUNDING
        for start, stop in _runs(one.terms(np.diff(other.transposed.indptr))):
            product = one.matrix(start, stop, len(self._keys)) @ other.transposed
            hits = np.flatnonzero(product.data > least)
            i = start + np.searchsorted(product.indptr, hits, side="right") - 1
            j = product.indices[hits]
            first_ends = one.last_rank[i] <= other.last_rank[j]
            most = product.data[hits] + np.where(first_ends, one.left_out[i], other.left_out[j])
            possible = np.minimum(most, np.minimum(m[i], n[j])) > self._bound.needed(m[i], n[j]) - _ROUNDING
            yield Pairs(left.order[left_band[0] + i[possible]], self._rows.order[right_band[0] + j[possible]])

    def _factor(self, band: _Band, thin: bool) -> _Factor:
        if (band, thin) not in self._factors:
            side = self._side(self._rows, band, thin)
            transposed = side.matrix(0, len(side.left_out), len(self._keys)).T.tocsr()
            self._factors[band, thin] = _Factor(transposed, side.left_out, side.last_rank)
        return self._factors[band, thin]

    def _side(self, rows: _Ranked, band: _Band, thin: bool) -> _Side:
        lengths = rows.lengths[band[0] : band[1]]
        return _Side.of(rows, band, self._bound.may_leave_out(lengths) if thin else np.zeros_like(lengths))


class _Factor(NamedTuple):
    """The right factor of a product: entries by rows, and what a ``_Side`` says of its rows."""

    transposed: csr_matrix
    left_out: Ints
    last_rank: npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Side:
    """The left factor of a product: the rows of a band without the most frequent entries of each."""

    columns: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    left_out: Ints
    last_rank: npt.NDArray[np.int32]  # of the most frequent entry that is in; above all ranks where none is left out

    @classmethod
    def of(cls, rows: _Ranked, band: _Band, left_out: Ints) -> _Side:
        start, stop = rows.offsets[band[0]], rows.offsets[band[1]]
        lengths, begins = rows.lengths[band[0] : band[1]], rows.offsets[band[0] : band[1]]
        ranks = rows.ranks[start:stop]
        within = np.arange(stop - start) - np.repeat(begins - start, lengths)
        kept = (within < np.repeat(lengths - left_out, lengths)) & (ranks >= 0)
        row = np.repeat(np.arange(len(lengths)), lengths)[kept]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(lengths)))])
        last = rows.ranks[begins + lengths - left_out - 1]
        return cls(ranks[kept].astype(np.int32), offsets, left_out, np.where(left_out > 0, last, _ABOVE_ALL_RANKS))

    def matrix(self, start: int, stop: int, columns: int) -> csr_matrix:
        from scipy.sparse import csr_matrix

        indices = self.columns[self.offsets[start] : self.offsets[stop]]
        indptr = (self.offsets[start : stop + 1] - self.offsets[start]).astype(np.int32)
        return csr_matrix((np.ones(len(indices), dtype=np.int32), indices, indptr), shape=(stop - start, columns))

    def terms(self, frequency: npt.NDArray[np.int32]) -> Ints:
        """Terms of the product that each row takes part in."""
        sums = np.concatenate([[0], np.cumsum(frequency[self.columns], dtype=np.int64)])
        return sums[self.offsets[1:]] - sums[self.offsets[:-1]]  # type: ignore[no-any-return]


def _before(pairs: Pairs) -> Pairs:
    before = pairs.right < pairs.left
    return Pairs(pairs.left[before], pairs.right[before])


def _together(parts: list[Pairs]) -> Pairs:
    nothing = np.empty(0, dtype=np.int64)
    return Pairs(*(np.concatenate([nothing, *side]) for side in ([p.left for p in parts], [p.right for p in parts])))


def _ranked(ranks: Ints, entries: Entries) -> _Ranked:
    lengths = entries.lengths
    order = np.flatnonzero(lengths)  # rows without a word are similar to nothing
    order = order[np.argsort(lengths[order], kind="stable")]
    place = np.empty(len(lengths), dtype=np.int64)
    place[order] = np.arange(len(order))
    row = place[np.repeat(np.arange(len(lengths)), lengths)]
    by_rank = np.argsort((row << 32) | (ranks + 1), kind="stable")
    offsets = np.concatenate([[0], np.cumsum(lengths[order])])
    return _Ranked(order, ranks[by_rank].astype(np.int32), offsets, _bands(lengths[order]))


def _bands(lengths: Ints) -> list[_Band]:
    bands = []
    start = 0
    while start < len(lengths):
        stop = int(np.searchsorted(lengths, max(lengths[start] * _BAND_RATIO, lengths[start] + 1), side="left"))
        stop = max(stop, start + _BAND_ROWS)
        if stop + _BAND_ROWS // 2 >= len(lengths):
            stop = len(lengths)
        bands.append((start, stop))
        start = stop
    return bands


def _runs(terms: Ints) -> Iterator[tuple[int, int]]:
    """Consecutive rows with at most ``_PRODUCT_TERMS`` terms together, or a single row."""
    part = np.cumsum(terms) // _PRODUCT_TERMS
    edges = (np.flatnonzero(np.diff(part)) + 1).tolist()
    yield from zip([0, *edges], [*edges, len(terms)], strict=True)

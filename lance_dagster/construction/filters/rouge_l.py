"""ROUGE-L similarity of two texts (section 3.3 of the paper), exactly as the packages that define it compute it.

Three statistics, each between 0 and 1, ``l`` being the longest common subsequence of m and n words:

* ``f``: F of the rouge-score package, from precision l/n and recall l/m.
* ``any``: the largest of that recall, precision and F, which is l/min(m, n).
* ``union_lcs``: the largest of recall, precision and F of the rouge package 1.0.1, which the reference code uses: the
  union of the longest common subsequences of all pairs of sentences, counted in distinct words (``union_lcs.py``).

A text without any word is similar to nothing: 0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lance_dagster.construction.filters.union_lcs import union_similarity
from lance_dagster.construction.filters.words import SENTENCE_END_NUMBER, Ints, TokenRule, WordIds, WordRows
from lance_dagster.errors import SettingsError

Statistic = Literal["f", "any", "union_lcs"]
Floats = npt.NDArray[np.float64]

_SURROGATES = range(0xD800, 0xE000)  # code points that are no characters
MAX_DISTINCT_WORDS = sys.maxunicode + 1 - len(_SURROGATES)
_PAIR_WORDS = 1 << 21  # words of the pairs that are compared at a time: bounds memory


class Pairs(NamedTuple):
    """Pairs of rows: positions in a left and in a right table."""

    left: Ints
    right: Ints


def similarities(left: WordRows, right: WordRows, pairs: Pairs, statistic: Statistic) -> Floats:
    """The similarity of each pair. One vocabulary numbered the words of both tables."""
    if statistic == "union_lcs":
        values = [union_similarity(right.row(j), left.row(i), SENTENCE_END_NUMBER) for i, j in zip(*pairs, strict=True)]
        return np.array(values, dtype=np.float64)
    common = np.empty(len(pairs.left), dtype=np.int64)
    for part in _parts(left.lengths[pairs.left] + right.lengths[pairs.right]):
        common[part] = _common(left, right, Pairs(pairs.left[part], pairs.right[part]))
    return _statistic(common, left.lengths[pairs.left], right.lengths[pairs.right], statistic)


def tokens_of(statistic: Statistic, rule: TokenRule) -> TokenRule:
    """The rule of tokenisation that a statistic needs: union_lcs is defined on its own."""
    return "sentences" if statistic == "union_lcs" else rule


def _statistic(common: Ints, m: Ints, n: Ints, statistic: Statistic) -> Floats:
    """From subsequence lengths; the same operations on floats as in rouge-score, so that equal means equal."""
    length = common.astype(np.float64)
    precision = np.divide(length, m, out=np.zeros_like(length), where=m > 0)
    recall = np.divide(length, n, out=np.zeros_like(length), where=n > 0)
    total = precision + recall
    f = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    largest: Floats = f if statistic == "f" else np.maximum(np.maximum(precision, recall), f)
    return largest


def _common(left: WordRows, right: WordRows, pairs: Pairs) -> Ints:
    """Lengths of the longest common subsequences, by rapidfuzz, which compares texts of one character per word."""
    from rapidfuzz.distance import LCSseq
    from rapidfuzz.process import cpdist

    lefts, left_of = np.unique(pairs.left, return_inverse=True)
    rights, right_of = np.unique(pairs.right, return_inverse=True)
    texts = _as_texts([left.row(i) for i in lefts] + [right.row(j) for j in rights])
    found = cpdist(
        [texts[i] for i in left_of],
        [texts[len(lefts) + j] for j in right_of],
        scorer=LCSseq.similarity,
        dtype=np.int64,
    )
    return np.asarray(found, dtype=np.int64)


def _as_texts(rows: list[WordIds]) -> list[str]:
    ids = np.concatenate(rows).astype(np.int64)
    if len(ids) and ids.max() >= MAX_DISTINCT_WORDS:  # rare: number the words that occur here anew
        distinct, ids = np.unique(ids, return_inverse=True)
        if len(distinct) > MAX_DISTINCT_WORDS:
            raise SettingsError(
                f"construction.filters: two texts with more than {MAX_DISTINCT_WORDS:,} distinct words cannot be "
                "compared. Lower instruction_words and response_words, which drop such texts before."
            )
    points = np.where(ids < _SURROGATES.start, ids, ids + len(_SURROGATES)).astype("<u4")
    whole = points.tobytes().decode("utf-32-le")
    ends = np.cumsum([len(row) for row in rows]).tolist()
    return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _parts(sizes: Ints) -> Iterator[slice]:
    """Slices of at most ``_PAIR_WORDS`` words; a pair that is longer alone is a slice of its own."""
    part = np.cumsum(sizes) // _PAIR_WORDS
    edges = np.flatnonzero(np.diff(part)) + 1
    for start, end in zip([0, *edges], [*edges, len(sizes)], strict=True):
        if end > start:
            yield slice(int(start), int(end))

"""ROUGE-L at summary level as the package rouge 1.0.1 computes it: the statistic of LANCE's reference code.

For each sentence of the reference, the union over all sentences of the other text of one longest common subsequence
each; counted in distinct words and divided by the number of distinct words. Which of several longest subsequences is
taken matters, so its reading order is the package's. The package fails on texts of about a thousand words without a
full stop (recursion) and on texts without a word; here the first have a value, and the second 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import isqrt

import numpy as np

from lance_dagster.construction.filters.words import WordIds

_STABILISER = 1e-8  # the package adds it to the denominator of F


def union_similarity(reference: WordIds, hypothesis: WordIds, stop: int) -> float:
    """The largest of recall, precision and F. ``stop`` is the number of the word that ends a sentence."""
    references, hypotheses = _sentences(reference, stop), _sentences(hypothesis, stop)
    m = len({word for sentence in references for word in sentence})
    n = len({word for sentence in hypotheses for word in sentence})
    if not m or not n:
        return 0.0
    union: set[int] = set()
    for one in references:
        for other in hypotheses:
            union.update(_subsequence(one, other))
    recall, precision = len(union) / m, len(union) / n
    f = 2.0 * ((precision * recall) / (precision + recall + _STABILISER))
    return max(recall, precision, f)


def _sentences(words: WordIds, stop: int) -> list[list[int]]:
    edges = np.flatnonzero(words == stop)
    return [part[part != stop].tolist() for part in np.split(words, edges) if len(part)]


def _subsequence(one: Sequence[int], other: Sequence[int]) -> Iterator[int]:
    """The words of one longest common subsequence, last first.

    Bit j of a table row is 0 where the subsequence grows with word j of ``other``; rows are whole numbers of Python
    (Hyyrö 2004). Every square-root-th row is kept and the others are computed again on the way back, so that memory
    grows with n times the square root of m.
    """
    positions: dict[int, int] = defaultdict(int)
    for j, word in enumerate(other):
        positions[word] |= 1 << j
    full = (1 << len(other)) - 1
    step = isqrt(len(one)) + 1

    def after(row: int, word: int) -> int:
        matches = row & positions.get(word, 0)
        return ((row + matches) | (row - matches)) & full

    kept = [full]
    row = full
    for i, word in enumerate(one, start=1):
        row = after(row, word)
        if i % step == 0:
            kept.append(row)
    i, j = len(one), len(other)
    block: list[int] = []
    block_start = -1
    while i and j:
        if one[i - 1] == other[j - 1]:
            yield one[i - 1]
            i, j = i - 1, j - 1
            continue
        if i // step != block_start:
            block_start = i // step
            block = [kept[block_start]]
            for word in one[block_start * step : min(len(one), (block_start + 1) * step - 1)]:
                block.append(after(block[-1], word))
        if block[i - block_start * step] >> (j - 1) & 1:
            j -= 1
        else:
            i -= 1

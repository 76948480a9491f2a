"""ROUGE-L similarity (section 3.3): tokens of the rouge-score package, longest common subsequences by rapidfuzz.

As in that package, words are runs of a-z and 0-9: text in other scripts has no words and is similar to nothing.
"""

from __future__ import annotations

import sys
from typing import Literal, NamedTuple

import numpy as np

from lance_dagster.errors import SettingsError

Statistic = Literal["f", "any"]
_SURROGATES = range(0xD800, 0xE000)  # code points that are no characters
MAX_DISTINCT_WORDS = sys.maxunicode + 1 - len(_SURROGATES)


class Similar(NamedTuple):
    """The highest similarity (0..1) that a text has with any of the earlier ones, and which one; None if it is 0."""

    value: float
    position: int | None


class RougeL:
    """Compares texts with a growing pool. ``statistic`` is F, or the largest of recall, precision and F."""

    def __init__(self, statistic: Statistic) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._statistic = statistic
        self._tokenizer = DefaultTokenizer(use_stemmer=False)
        self._codes: dict[str, str] = {}
        self._pool: list[str] = []
        self._lengths: list[int] = []

    def add(self, text: str) -> None:
        """Put a text into the pool that later texts are compared with."""
        words = self._encode(text)
        self._pool.append(words)
        self._lengths.append(len(words))

    def most_similar(self, text: str) -> Similar:
        """The most similar text of the pool, the first of equals. A text without any word is similar to nothing."""
        words = self._encode(text)
        if not words or not self._pool:
            return Similar(0.0, None)
        from rapidfuzz.distance import LCSseq
        from rapidfuzz.process import cdist

        common = cdist([words], self._pool, scorer=LCSseq.similarity, dtype=np.int32)[0].astype(np.float64)
        lengths = np.array(self._lengths, dtype=np.float64)
        precision = common / len(words)
        recall = np.divide(common, lengths, out=np.zeros_like(common), where=lengths > 0)
        total = precision + recall
        values = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
        if self._statistic == "any":
            values = np.maximum(np.maximum(precision, recall), values)
        best = int(values.argmax())
        value = float(values[best])
        return Similar(value, best if value > 0 else None)

    def _encode(self, text: str) -> str:
        """One code point per word, so that a fast string routine can compare words."""
        return "".join(self._code(token) for token in self._tokenizer.tokenize(text))

    def _code(self, token: str) -> str:
        if token not in self._codes:
            number = len(self._codes)
            if number == MAX_DISTINCT_WORDS:
                raise SettingsError(
                    f"construction.filters.rouge_scope: more than {MAX_DISTINCT_WORDS:,} distinct words are compared "
                    "with each other, the most there can be. Set it to 'seed', which compares fewer rows."
                )
            self._codes[token] = chr(number if number < _SURROGATES.start else number + len(_SURROGATES))
        return self._codes[token]

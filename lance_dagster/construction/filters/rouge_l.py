"""ROUGE-L similarity (section 3.3): tokens of the rouge-score package, longest common subsequences by rapidfuzz."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Statistic = Literal["f", "any"]


class Similar(NamedTuple):
    """The highest similarity (0..1) that a text has with any of the earlier ones, and which one that is."""

    value: float
    index: int | None


class RougeL:
    """Compares texts with a growing pool. ``statistic`` is F, or the largest of recall, precision and F."""

    def __init__(self, statistic: Statistic) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._statistic = statistic
        self._tokenizer = DefaultTokenizer(use_stemmer=False)
        self._codes: dict[str, str] = {}
        self._pool: list[str] = []

    def _encode(self, text: str) -> str:
        """One code point per word, so that a fast string routine can compare words."""
        return "".join(self._code(token) for token in self._tokenizer.tokenize(text))

    def _code(self, token: str) -> str:
        if token not in self._codes:
            number = len(self._codes)
            self._codes[token] = chr(number if number < 0xD800 else number + 0x800)  # surrogates are no characters
        return self._codes[token]

    def add(self, text: str) -> None:
        """Put a text into the pool that later texts are compared with."""
        self._pool.append(self._encode(text))

    def most_similar(self, text: str) -> Similar:
        """The most similar text of the pool. A text without any word is similar to nothing."""
        words = self._encode(text)
        if not words or not self._pool:
            return Similar(0.0, None)
        from rapidfuzz.distance import LCSseq
        from rapidfuzz.process import cdist

        common = cdist([words], self._pool, scorer=LCSseq.similarity, dtype=np.int32)[0].astype(np.float64)
        lengths = np.array([len(entry) for entry in self._pool], dtype=np.float64)
        precision = common / len(words)
        recall = np.divide(common, lengths, out=np.zeros_like(common), where=lengths > 0)
        total = precision + recall
        values = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
        if self._statistic == "any":
            values = np.maximum(np.maximum(precision, recall), values)
        best = int(values.argmax())
        return Similar(float(values[best]), best)

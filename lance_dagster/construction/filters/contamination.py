"""Contamination: what an evaluation task asks or answers must not be trained on.

A text overlaps with an evaluation document if it asks one of its questions as a whole, or shares a run of
``contamination_words`` words with one of its questions or answers. Both are compared after ``normalise``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lance_dagster.construction.filters.words import Ints, Vocabulary, split_unspaced

CONTAMINATED = "contaminated"
# Ways to type the same arithmetic sign.
_SAME_SIGN = {"−": "-", "×": "*", "⋅": "*", "÷": "/", "∕": "/"}
_HASH_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word is lost
_UNKNOWN = -1


class _Comparable(dict[int, str]):
    """For str.translate: what a character is compared as, worked out when it is first met.

    Letters (with their marks) and digits stay, signs and symbols become words of their own, so that 12+7 is 12 + 7,
    and other punctuation is white space. Invisible format characters vanish.
    """

    def __missing__(self, code: int) -> str:
        character = _SAME_SIGN.get(chr(code), chr(code))
        category = unicodedata.category(character)
        if category[0] in "LMN":
            text = character
        elif category == "Pd":
            text = " - "
        elif category in ("Sm", "Sc", "So") or character in "*/%^":
            text = f" {character} "
        else:
            text = "" if category == "Cf" else " "
        self[code] = text
        return text


_COMPARABLE = _Comparable()


def normalise(text: str) -> str:
    """Text for comparison: compatibility form, lower case, arithmetic signs and symbols kept, punctuation dropped."""
    folded = text.lower() if text.isascii() else _fold(text)
    return " ".join(folded.translate(_COMPARABLE).split())


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


class EvaluationText(NamedTuple):
    """One text of an evaluation document: ``document`` is its position in its task."""

    task: str
    document: int
    field: str
    text: str
    answer: bool = False


class Overlap(NamedTuple):
    """Where a text overlaps with an evaluation text: the words that both have, normalised."""

    source: EvaluationText
    whole: bool  # the text asks the question as a whole
    words: str


class EvaluationIndex:
    """Everything that evaluation tasks ask and answer, for looking up texts.

    ``words``: how many words in a row make an overlap. Shorter questions count where a text is the question, shorter
    answers ("B", "18") never.
    """

    def __init__(self, texts: Iterable[EvaluationText] = (), words: int = 13) -> None:
        self._words = words
        self._questions: dict[str, EvaluationText] = {}
        self._vocabulary = Vocabulary()
        self._sources: list[EvaluationText] = []
        known: set[str] = set()
        ids: list[npt.NDArray[np.int64]] = []
        for source in texts:
            normal = normalise(source.text)
            if normal and not source.answer:
                self._questions.setdefault(normal, source)
            if normal not in known and len(own := _comparable_words(normal)) >= words:
                known.add(normal)
                ids.append(np.array(self._vocabulary.numbers(own), dtype=np.int64))
                self._sources.append(source)
        self._ids = np.concatenate([np.empty(0, dtype=np.int64), *ids])
        self._offsets = np.concatenate([[0], np.cumsum([len(own) for own in ids])]).astype(np.int64)
        starts = np.concatenate([np.empty(0, dtype=np.int64), *map(self._run_starts, range(len(ids)))])
        hashes = self._hashes(self._ids)[starts] if len(starts) else np.empty(0, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        self._hashes_sorted, self._starts = hashes[order], starts[order]

    def __len__(self) -> int:
        """Distinct questions."""
        return len(self._questions)

    def __bool__(self) -> bool:
        return bool(self._questions or self._sources)

    def overlap(self, instruction: str) -> Overlap | None:
        """The first overlap of an instruction: it is a question, or shares a run of words; None if there is none."""
        normal = normalise(instruction)
        asked = self._questions.get(normal)
        return self._shared_run(normal) if asked is None else Overlap(asked, True, normal)

    def shared_run(self, response: str) -> Overlap | None:
        """The first run of words that a response shares with a question or an answer, or None."""
        return self._shared_run(normalise(response))

    def _shared_run(self, normal: str) -> Overlap | None:
        words = _comparable_words(normal)
        if len(words) < self._words or not self._sources:
            return None
        ids = np.array(self._vocabulary.known_numbers(words, _UNKNOWN), dtype=np.int64)
        for start in self._possible(ids):
            run = ids[start : start + self._words]
            for place in self._same_hash(run):
                if np.array_equal(self._ids[place : place + self._words], run):
                    source = self._sources[int(np.searchsorted(self._offsets, place, side="right")) - 1]
                    return Overlap(source, False, " ".join(words[start : start + self._words]))
        return None

    def _possible(self, ids: Ints) -> Sequence[int]:
        """Where a text has a run of words whose hash occurs."""
        unknown = np.concatenate([[0], np.cumsum(ids == _UNKNOWN)])
        complete = unknown[self._words :] == unknown[: -self._words]
        if not complete.any():
            return []
        hashes = self._hashes(ids)
        at = np.minimum(np.searchsorted(self._hashes_sorted, hashes), len(self._hashes_sorted) - 1)
        found: list[int] = np.flatnonzero(complete & (self._hashes_sorted[at] == hashes)).tolist()
        return found

    def _same_hash(self, run: Ints) -> Iterator[int]:
        value = self._hashes(run)[0]
        first, last = (
            np.searchsorted(self._hashes_sorted, value, "left"),
            np.searchsorted(self._hashes_sorted, value, "right"),
        )
        yield from self._starts[first:last].tolist()

    def _run_starts(self, text: int) -> Ints:
        return np.arange(self._offsets[text], self._offsets[text + 1] - self._words + 1)

    def _hashes(self, ids: Ints) -> npt.NDArray[np.uint64]:
        """Of each run of words, by where it starts; equal runs have equal hashes."""
        count = max(0, len(ids) - self._words + 1)
        value = np.zeros(count, dtype=np.uint64)
        plain = ids.astype(np.uint64) + np.uint64(1)
        for place in range(self._words):
            value = value * _HASH_BASE + plain[place : place + count]
        return value


def _comparable_words(normal: str) -> list[str]:
    words = normal.split()
    return words if normal.isascii() else [part for word in words for part in split_unspaced(word)]

"""Words of a text as numbers: the named rules of tokenisation, and rows of word numbers in one flat array.

* ``rouge_score``: the tokeniser of the rouge-score package without stemming: lower case, runs of a-z and 0-9. Text in
  other scripts has no words.
* ``unicode``: composed (NFC), lower case, runs of letters, marks and digits of any script. Scripts that are written
  without spaces (Chinese, Japanese kana, Thai, Lao, Khmer, Burmese, Tibetan …) give one word per letter, with the
  marks on it. Where a text has ASCII letters only, both rules agree. Punctuation, symbols and emoji are no words.
* ``sentences``: what the rouge package 1.0.1 compares: split at white space, case and punctuation kept; a full stop
  ends a sentence and is the word ``.`` here, which no word contains.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

TokenRule = Literal["rouge_score", "unicode", "sentences"]
SENTENCE_END = "."
SENTENCE_END_NUMBER = 0  # in every vocabulary

_ASCII_WORDS = re.compile(r"[a-z0-9]+")
_UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}"
    r"\p{Balinese}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}"
)
Ints = npt.NDArray[np.int64]
WordIds = npt.NDArray[np.int32]


def split_words(text: str, rule: TokenRule) -> list[str]:
    """The words of a text under a rule, in order."""
    if rule == "rouge_score":
        return _ASCII_WORDS.findall(text.lower())
    if rule == "unicode":
        lower = unicodedata.normalize("NFC", text).lower()
        return _ASCII_WORDS.findall(lower) if lower.isascii() else _unicode_words().findall(lower)  # the same, faster
    return _sentences(text)


def unseen_by_rouge_score(text: str) -> bool:
    """Whether a text has words that the rule ``rouge_score`` overlooks: letters that are not ASCII."""
    return not text.isascii() and any(letter.isalpha() for letter in set(text) if not letter.isascii())


def split_unspaced(word: str) -> list[str]:
    """A word with the letters of scripts that are written without spaces one by one, and the rest together."""
    if word.isascii():
        return [word]
    import regex

    return regex.findall(rf"[{_UNSPACED}]\p{{M}}*|[^{_UNSPACED}]+", word, regex.V1)  # type: ignore[no-any-return]


def is_unspaced(letter: str) -> bool:
    """Whether a letter is of a script that is written without spaces between words."""
    import regex

    return regex.match(f"[{_UNSPACED}]", letter, regex.V1) is not None


def scripts_of(text: str) -> Counter[str]:
    """How many letters of each script a text has, by the first word of their Unicode names.

    The three scripts of Japanese count as CJK, which they are mixed with.
    """
    scripts: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter.isalpha():
            scripts[_script(letter)] += count
    return scripts


@cache
def _script(letter: str) -> str:
    name = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "UNKNOWN").split()[0].partition("-")[0]
    return {"HIRAGANA": "CJK", "KATAKANA": "CJK", "IDEOGRAPHIC": "CJK"}.get(name, name)


@cache
def _unicode_words() -> re.Pattern[str]:
    import regex

    letter = rf"(?:(?![{_UNSPACED}])[\p{{L}}\p{{N}}])"
    return regex.compile(rf"[{_UNSPACED}--[\p{{P}}\p{{S}}\p{{M}}]]\p{{M}}*|{letter}(?:{letter}|\p{{M}})*", regex.V1)  # type: ignore[no-any-return]


def _sentences(text: str) -> list[str]:
    """The package drops empty parts between full stops, but keeps parts of white space, as one empty word."""
    words: list[str] = []
    for sentence in text.split("."):
        if sentence:
            words += [SENTENCE_END] if words else []
            words += sentence.split() or [""]
    return words


class _Numbers(dict[str, int]):
    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


class Vocabulary:
    """Numbers for words, in the order in which they are first met, behind ``SENTENCE_END``."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        self._numbers = _Numbers()
        self.numbers([SENTENCE_END, *words])

    def __len__(self) -> int:
        return len(self._numbers)

    def numbers(self, words: Sequence[str]) -> list[int]:
        return list(map(self._numbers.__getitem__, words))

    def known_numbers(self, words: Sequence[str], unknown: int) -> list[int]:
        """As ``numbers``, but a new word stays new and is ``unknown``."""
        return list(map(self._numbers.get, words, repeat(unknown)))


@dataclass(frozen=True)
class WordRows:
    """Texts as word numbers: row i is ``flat[offsets[i]:offsets[i + 1]]``."""

    flat: WordIds
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)

    def row(self, position: int) -> WordIds:
        return self.flat[self.offsets[position] : self.offsets[position + 1]]

    def take(self, positions: Ints) -> WordRows:
        """Some rows, in the given order."""
        lengths = self.lengths[positions]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return WordRows(self.flat[np.repeat(self.offsets[:-1][positions], lengths) + within], offsets)

    @classmethod
    def of(cls, texts: Iterable[str], rule: TokenRule, vocabulary: Vocabulary) -> Self:
        """Texts under a rule; new words enter ``vocabulary``. Texts may come from a generator: only numbers stay."""
        flat, offsets = array("i"), array("q", [0])
        for text in texts:
            flat.extend(vocabulary.numbers(split_words(text, rule)))
            offsets.append(len(flat))
        return cls(np.array(flat, dtype=np.int32), np.array(offsets, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of several, one after another."""
        lengths = np.concatenate([np.empty(0, dtype=np.int64), *(part.lengths for part in parts)])
        flat = np.concatenate([np.empty(0, dtype=np.int32), *(part.flat for part in parts)])
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]))

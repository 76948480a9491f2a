"""Contamination: a generated instruction that an evaluation task asks must not be trained on."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

CONTAMINATED = "contaminated"
# Ways to type the same arithmetic sign.
_SAME_SIGN = {"−": "-", "×": "*", "⋅": "*", "÷": "/", "∕": "/"}


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
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_COMPARABLE).split())


class EvaluationQuestions:
    """Exact look-up, after normalisation, of the texts that evaluation tasks ask."""

    def __init__(self, questions: Iterable[str]) -> None:
        self._known = {normalise(question) for question in questions} - {""}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, instruction: str) -> bool:
        return normalise(instruction) in self._known

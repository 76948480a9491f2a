"""Contamination: a generated instruction that an evaluation task asks must not be trained on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

CONTAMINATED = "contaminated"
_NOT_WORD = re.compile(r"[^\w+\-*/=<>]+")


def normalise(text: str) -> str:
    """Text for comparison: compatibility form, lower case, arithmetic signs kept, other punctuation dropped."""
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


class EvaluationQuestions:
    """Exact look-up, after normalisation, of the texts that evaluation tasks ask."""

    def __init__(self, questions: Iterable[str]) -> None:
        self._known = {normalise(question) for question in questions} - {""}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, instruction: str) -> bool:
        return normalise(instruction) in self._known

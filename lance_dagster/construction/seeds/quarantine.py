"""Why a seed row is set aside instead of used, and the checks on its texts.

A row that is set aside stays visible: it goes to the quarantine table with its position, the reason (one of
``REASONS``), a detail that names the field, and an excerpt. Nothing is repaired, cut or guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lance_dagster.errors import SettingsError

NOT_UTF8 = "not_utf8"
NOT_JSON = "not_json"
NOT_AN_OBJECT = "not_an_object"
MISSING_FIELD = "missing_field"
EMPTY = "empty"
NUL_BYTE = "nul_byte"
LONE_SURROGATE = "lone_surrogate"
OVER_LONG = "over_long"
CONTROL_TOKEN = "control_token"
BAD_SCORE = "bad_score"
DUPLICATE = "duplicate"
CONTAMINATED = "contaminated"

REASONS = {
    NOT_UTF8: "the line, or a text of the row, is not valid UTF-8",
    NOT_JSON: "the line is not valid JSON",
    NOT_AN_OBJECT: "the row is valid JSON but not an object with named fields",
    MISSING_FIELD: "the row fits no known layout, or a field that its layout needs is not text",
    EMPTY: "a text is empty once the white space around it is stripped",
    NUL_BYTE: "a text contains U+0000, which tokenizers and data bases cut or refuse",
    LONE_SURROGATE: "a text contains half of a surrogate pair and cannot be written as UTF-8",
    OVER_LONG: "instruction or response has more words than seed.max_words",
    CONTROL_TOKEN: "a text contains a control token of a chat template (seed.control_tokens)",
    BAD_SCORE: "the score is not a finite number in 0..10",
    DUPLICATE: "an earlier good row says the same, up to Unicode normalisation (NFC) and white space",
    CONTAMINATED: "a text overlaps with an evaluation task (construction.filters.contamination)",
}
"""Every reason and its meaning, in the order in which a row meets the checks."""

EXCERPT_CHARACTERS = 200
_WORD_LIMITED = ("instruction", "response")


@dataclass(frozen=True)
class Fault:
    """Why one row is set aside: a key of ``REASONS``, and what exactly is wrong with this row."""

    reason: str
    detail: str


def control_token_patterns(patterns: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    """The compiled ``seed.control_tokens``. Raises SettingsError that names the pattern which does not compile."""
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise SettingsError(
                f"seed.control_tokens: {pattern!r} is not a regular expression ({error}); "
                r"escape what is meant literally, as in '\[INST\]'"
            ) from error
    return tuple(compiled)


def text_fault(texts: Mapping[str, str], max_words: int, control_tokens: Sequence[re.Pattern[str]]) -> Fault | None:
    """What is wrong with the stripped texts of one row (field name to text), None if nothing is."""
    for name, text in texts.items():
        if not text:
            return Fault(EMPTY, f"{name} is empty")
        if "\x00" in text:
            return Fault(NUL_BYTE, f"{name} contains U+0000 at character {text.index(chr(0))}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X}"
            return Fault(LONE_SURROGATE, f"{name} contains the lone surrogate {half} at character {error.start}")
        if name in _WORD_LIMITED and (words := len(text.split())) > max_words:
            return Fault(OVER_LONG, f"{name} has {words} words, more than seed.max_words = {max_words}")
        for pattern in control_tokens:
            if match := pattern.search(text):
                return Fault(CONTROL_TOKEN, f"{name} contains {match.group()!r} at character {match.start()}")
    return None


def excerpt(value: object) -> str:
    """The first 200 characters of a row (raw bytes, or a parsed value shown as JSON), safe to store and print."""
    if isinstance(value, bytes):
        text = value.decode("utf-8", errors="backslashreplace")
    else:
        text = json.dumps(value, ensure_ascii=False, default=str).replace(r"\u0000", r"\x00")
    return printable(text[:EXCERPT_CHARACTERS])


def printable(text: str) -> str:
    """``text`` with U+0000 and lone surrogates spelled out, so that it can be written as UTF-8."""
    return text.replace("\x00", r"\x00").encode("utf-8", errors="backslashreplace").decode("utf-8")

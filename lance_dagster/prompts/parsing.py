"""Reading what a model wrote: the score and the rationale of a review, and the answer behind a marker.

What cannot be read is missing (None), never 0 and never a guess. A text that was cut off (finish_reason 'length')
may still parse, to the wrong value ("score: 1" of "score: 10"): callers look at the finish reason first.

Every quantifier below has an upper bound, so reading time grows with the length of the text and no faster.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from statistics import fmean

SCORE_STATEMENT = re.compile(r"(?<![a-z0-9])score[ \t*_`]{0,8}:", re.IGNORECASE | re.ASCII)
_VALUE = re.compile(
    r"""
    [ \t*_`]{0,8} (?P<number>[0-9]{1,2}(?:\.[0-9]{1,20})?)
    (?: [ \t*_`]{0,8} (?:/|out\ of) [ \t*_`]{0,8} 10 )?
    (?: [ \t*_`]{0,8} points? )?
    [ \t*_`]{0,8} \.? [*_`]{0,3}
    """,
    re.IGNORECASE | re.ASCII | re.VERBOSE,
)
_DECORATION = " \t*_`#>-"
_LABELS = ("", "final", "total", "overall")  # what may stand before `score:` without being part of the rationale


def parse_score(text: str) -> float | None:
    """The score of a review, in 0..10, or None if it has none that can be trusted.

    * A statement is the word ``score`` in any case, a colon, and the rest of that line. Markdown emphasis around
      either part and spaces before the colon do not matter; words may stand before it ("It is right. Score: 9").
    * The value is a plain number (``8``, ``8.5``), optionally followed by ``/10`` or ``out of 10``, by ``point`` or
      ``points`` and by a full stop, and by nothing else.
    * None, therefore, for no number, the echoed placeholder ``<total>``, a number on the next line, a sign, an
      exponent, NaN, a percentage, a decimal comma, a range (``7-8``, ``7 to 8``), another denominator (``4/5``) and
      trailing prose.
    * None for a number outside 0..10.
    * The last statement counts, also where it disagrees with earlier ones; if it is invalid the result is None,
      not an earlier score.
    """
    statement = _last(SCORE_STATEMENT, text)
    if statement is None:
        return None
    value = _VALUE.fullmatch(text[statement.end() :].partition("\n")[0].strip())
    if value is None:
        return None
    score = float(value["number"])
    return score if score <= 10 else None


def parse_rationale(text: str) -> str:
    """The text before the statement that ``parse_score`` reads, valid or not, stripped; all of it if there is none.

    Markdown marks and a label ("Total score: 8") on the statement's own line belong to the statement.
    """
    statement = _last(SCORE_STATEMENT, text)
    if statement is None:
        return text.strip()
    before = text[: statement.start()]
    line_start = before.rfind("\n") + 1
    if before[line_start:].strip(_DECORATION).lower() in _LABELS:
        return before[:line_start].strip()
    return before.rstrip("*_`").strip()  # only marks that touch the word: they open its emphasis


def extract_answer(text: str, marker: str | None) -> str | None:
    """What follows the last ``marker`` ("Final Answer:"), stripped; None if the marker is missing or nothing follows.

    The marker is found in any case, with Markdown emphasis around it and with spaces before its colon. Without a
    marker (None) the answer is the whole text. ValueError if the marker is blank.
    """
    if marker is None:
        return text.strip() or None
    found = _last(_marker_pattern(marker), text)
    if found is None:
        return None
    return text[found.end() :].strip() or None


def mean_score(scores: Sequence[float | None]) -> float | None:
    """The mean of the scores that are present, or None if none is."""
    present = [score for score in scores if score is not None]
    return fmean(present) if present else None


def _marker_pattern(marker: str) -> re.Pattern[str]:
    words = marker.strip().removesuffix(":").split()
    if not words:
        raise ValueError(f"an answer marker needs at least one word, got {marker!r}; use None for no marker")
    colon = r"[ \t*_]{0,8}:" if marker.strip().endswith(":") else ""
    phrase = r"[ \t]{1,8}".join(re.escape(word) for word in words)
    # Marks behind the marker go with it only if the same marks opened it; others belong to the answer.
    return re.compile(rf"(?P<marks>[*_]{{0,3}}){phrase}{colon}(?P=marks)?", re.IGNORECASE)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None

"""Filters that look at one generated row alone: small units, each with its own drop reason and settings.

``RULES`` is their order, cheap ones first; the first that objects names the reason. What is decided while generating
(``truncated``, ``no_answer``, ``control_token``) and what needs other rows (repetitions, similarity, contamination) is
elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lance_dagster.construction.filters.contamination import normalise
from lance_dagster.construction.filters.words import is_unspaced, scripts_of, split_words
from lance_dagster.settings import FilterSettings

EMPTY, BROKEN_CHARACTERS = "empty", "broken_characters"
TOO_SHORT_INSTRUCTION, TOO_LONG_INSTRUCTION = "instruction_too_short", "instruction_too_long"
TOO_SHORT_RESPONSE, TOO_LONG_RESPONSE = "response_too_short", "response_too_long"
TOO_FEW_TOKENS, TOO_MANY_TOKENS = "too_few_tokens", "too_many_tokens"
ECHO, REPETITIVE, OTHER_SCRIPT, KEYWORD, REFUSAL = "echo", "repetitive", "other_script", "keyword", "refusal"

_REPEATED_WORDS = 4  # words of a run that is looked for again
_SHORTEST_REPETITIVE = 16  # words; shorter texts repeat by nature ("ha ha ha")
_REFUSAL = re.compile(
    r"(?:(?:i'?m|i am)(?: (?:very|so|really|truly))? (?:sorry|afraid)|sorry|i apologi[sz]e|unfortunately)\b"
    r"[^.!?\n]{0,60}?\b(?:can(?:no|')t|can not|unable|not able|won'?t|must decline)\b"
    r"|i (?:can(?:no|')t|can not|won'?t|am (?:unable|not able)|must decline|have to decline)"
    r" (?:to )?(?:help|assist|answer|fulfil|fulfill|comply|provide|do|create|write|generate|complete|support|discuss)\b"
    r"|as an ai\b[^.!?\n]{0,60}?\b(?:can(?:no|')t|can not|unable|not able|don'?t|do not)\b",
    re.IGNORECASE,
)


class Generated(NamedTuple):
    """One generated row: ``text`` is what the model wrote, for ``prompt`` (for new instructions, that of the seed)."""

    kind: str  # instruction | response | flawed_response
    text: str
    prompt: str
    tokens: int  # that the model wrote, a thought process included


@dataclass(frozen=True)
class Rules:
    """The rules under some settings."""

    filters: FilterSettings

    def objection(self, row: Generated) -> str | None:
        """Why the row is dropped; None if all rules let it pass."""
        return next((reason for rule in RULES if (reason := rule(self, row)) is not None), None)

    def empty(self, row: Generated) -> str | None:
        """Nothing but white space; of an instruction, nothing but punctuation and symbols either."""
        wordless = row.kind == "instruction" and not any(letter.isalnum() for letter in row.text)
        return EMPTY if wordless or not row.text.strip() else None

    def broken_characters(self, row: Generated) -> str | None:
        """U+0000, U+FFFD (bytes that were no text) or half of a surrogate pair."""
        broken = "\x00" in row.text or "\ufffd" in row.text or _has_surrogates(row.text)
        return BROKEN_CHARACTERS if broken else None

    def words(self, row: Generated) -> str | None:
        """Length in white-space separated words."""
        count = len(row.text.split())
        instruction = row.kind == "instruction"
        fewest, most = self.filters.instruction_words if instruction else self.filters.response_words
        if count < fewest:
            return TOO_SHORT_INSTRUCTION if instruction else TOO_SHORT_RESPONSE
        if count > most:
            return TOO_LONG_INSTRUCTION if instruction else TOO_LONG_RESPONSE
        return None

    def tokens(self, row: Generated) -> str | None:
        """Length in tokens of the model."""
        limits = self.filters.instruction_tokens if row.kind == "instruction" else self.filters.response_tokens
        if limits is None or limits[0] <= row.tokens <= limits[1]:
            return None
        return TOO_FEW_TOKENS if row.tokens < limits[0] else TOO_MANY_TOKENS

    def echo(self, row: Generated) -> str | None:
        """A response that is its prompt again, up to case, spaces and punctuation."""
        if self.filters.echoes == "keep" or row.kind == "instruction" or len(row.text) > 4 * len(row.prompt) + 100:
            return None
        text = normalise(row.text)
        return ECHO if text and text == normalise(row.prompt) else None

    def repetitive(self, row: Generated) -> str | None:
        """The same runs of four words, or the same character, again and again."""
        share = self.filters.repeated_share
        if self._character_run is not None and self._character_run.search(row.text):
            return REPETITIVE
        if share is None or len(row.text) < 2 * _SHORTEST_REPETITIVE - 1:
            return None
        words = split_words(row.text, "unicode")
        if len(words) < _SHORTEST_REPETITIVE:
            return None
        runs_of_words = list(zip(*(words[i:] for i in range(_REPEATED_WORDS)), strict=False))
        repeated = 1 - len(set(runs_of_words)) / len(runs_of_words)
        return REPETITIVE if repeated > share else None

    def other_script(self, row: Generated) -> str | None:
        """Too many letters of scripts that the prompt does not use (an English question answered in Chinese)."""
        share = self.filters.other_script_share
        if share is None or (row.text.isascii() and any(letter.isalpha() for letter in row.prompt if letter.isascii())):
            return None
        own, asked = scripts_of(row.text), scripts_of(row.prompt)
        foreign = sum(count for script, count in own.items() if script not in asked)
        return OTHER_SCRIPT if asked and own and foreign > share * own.total() else None

    def keyword(self, row: Generated) -> str | None:
        """A word or phrase of the list, in any case."""
        return KEYWORD if self._keywords is not None and self._keywords.search(row.text) else None

    def refusal(self, row: Generated) -> str | None:
        """An English response that begins by declining."""
        if self.filters.refusals == "keep" or row.kind == "instruction":
            return None
        start = unicodedata.normalize("NFKC", row.text[:400]).replace("\u2019", "'").lstrip(" \t\n*_\"'")
        return REFUSAL if _REFUSAL.match(start) else None

    @cached_property
    def _character_run(self) -> re.Pattern[str] | None:
        longest = self.filters.longest_character_run
        return None if longest is None else re.compile(rf"(\S)\1{{{longest}}}")

    @cached_property
    def _keywords(self) -> re.Pattern[str] | None:
        def whole(phrase: str) -> str:
            """Words stand alone, where their script has spaces between words."""
            inner = r"\s+".join(re.escape(word) for word in phrase.split())
            start = r"(?<!\w)" if phrase[0].isalnum() and not is_unspaced(phrase[0]) else ""
            end = r"(?!\w)" if phrase[-1].isalnum() and not is_unspaced(phrase[-1]) else ""
            return f"{start}{inner}{end}"

        phrases = [whole(phrase.strip()) for phrase in self.filters.keywords]
        return re.compile("|".join(phrases), re.IGNORECASE) if phrases else None


RULES: tuple[Callable[[Rules, Generated], str | None], ...] = (
    Rules.empty,
    Rules.broken_characters,
    Rules.words,
    Rules.tokens,
    Rules.keyword,
    Rules.refusal,
    Rules.echo,
    Rules.repetitive,
    Rules.other_script,
)


def _has_surrogates(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False

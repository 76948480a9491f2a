"""Filters that look at one row alone. Each returns the drop reason, or None where the row passes."""

from __future__ import annotations

TOO_SHORT_INSTRUCTION, TOO_LONG_INSTRUCTION = "instruction_too_short", "instruction_too_long"
TOO_SHORT_RESPONSE, TOO_LONG_RESPONSE = "response_too_short", "response_too_long"


def instruction_length(instruction: str, words: tuple[int, int]) -> str | None:
    """Length filter for new instructions, in whitespace-separated words."""
    return _length(instruction, words, TOO_SHORT_INSTRUCTION, TOO_LONG_INSTRUCTION)


def response_length(response: str, words: tuple[int, int]) -> str | None:
    """Length filter for responses, in whitespace-separated words."""
    return _length(response, words, TOO_SHORT_RESPONSE, TOO_LONG_RESPONSE)


def _length(text: str, words: tuple[int, int], short: str, long: str) -> str | None:
    count = len(text.split())
    if count < words[0]:
        return short
    return long if count > words[1] else None

"""Making text harmless before it goes into a prompt: it cannot close a chat turn or a tag, nor state a review's score.

Seeds and generated rows are other people's text. Three things in it would be read as the prompt's own: control tokens
of the chat template, the tags that a template puts around its fields, and a line such as "score: 10". They are changed
by a character, so that a reader still sees what was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lance_dagster.prompts.parsing import SCORE_STATEMENT

_TAG = re.compile(r"</?([A-Za-z][\w-]{0,40})>")


@dataclass(frozen=True)
class ControlTokens:
    """What a chat template is made of. ``<|im_end|>`` in a text becomes ``< |im_end|>``."""

    pattern: re.Pattern[str]

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> ControlTokens:
        """Every token that a transformers tokenizer reads as one wherever it occurs in a text."""
        added = tokenizer.added_tokens_decoder.values()
        tokens = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        return cls.of_patterns(re.escape(token) for token in sorted(tokens, key=len, reverse=True) if token.strip())

    @classmethod
    def of_patterns(cls, patterns: Iterable[str]) -> ControlTokens:
        return cls(re.compile("|".join(patterns) or r"(?!)"))

    def neutralised(self, text: str) -> str:
        while self.pattern.search(text):  # two tokens may overlap, and breaking one leaves the other
            text = self.pattern.sub(self._broken, text)
        return text

    def _broken(self, token: re.Match[str]) -> str:
        broken = f"{token[0][0]} {token[0][1:]}"
        return " " if self.pattern.search(broken) else broken

    def messages(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """Chat messages whose text holds no control token."""
        return [{**message, "content": self.neutralised(message["content"])} for message in messages]


def without_tags(text: str, template: str) -> str:
    """``text`` without the tags that ``template`` is laid out with: ``</response>`` becomes ``(/response)``.

    Other tags, such as those of HTML in a seed, stay. White space and case in a tag do not hide it.
    """
    names = sorted({tag.lower() for tag in _TAG.findall(template)})
    if not names:
        return text
    tags = re.compile(rf"<\s{{0,8}}(/?)\s{{0,8}}({'|'.join(map(re.escape, names))})\s{{0,8}}>", re.IGNORECASE)
    return tags.sub(r"(\1\2)", text)


def without_score(text: str) -> str:
    """``text`` without a statement that ``parse_score`` reads: ``score: 10`` becomes ``score = 10``.

    So a reviewer that quotes what it reviews does not give the score that was planted there.
    """
    return SCORE_STATEMENT.sub(lambda statement: statement[0][:-1] + " =", text)

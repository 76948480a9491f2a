"""What an engine is: something that answers a list of prompts, each with its own sampling and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lance_dagster.prompts.prompt_sets import Message
from lance_dagster.settings import SamplingSettings

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt. ``seed`` decides its sample alone, whatever else is generated with it."""

    messages: tuple[Message, ...]
    sampling: SamplingSettings
    seed: int


@dataclass(frozen=True)
class Completion:
    """The answer to one request. ``finish_reason`` 'length' means that the text was cut off."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


class TextEngine(Protocol):
    """Generates text with one model.

    ``identity`` is part of the cache key: engines whose texts differ have different identities. A prompt that the
    model cannot take (too long for its context) raises GenerationError with the position of the request.
    """

    @property
    def model_digest(self) -> str: ...

    @property
    def identity(self) -> str: ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """One completion per request, in order."""
        ...

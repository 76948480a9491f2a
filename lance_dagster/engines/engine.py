"""What an engine is: something that answers a list of prompts, each with its own sampling and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lance_dagster.prompts.prompt_sets import Message
from lance_dagster.settings import SamplingSettings

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt. ``seed`` decides its sample alone, whatever else is generated with it."""

    messages: tuple[Message, ...]
    sampling: SamplingSettings
    seed: int


@dataclass(frozen=True)
class Completion:
    """The answer to one request.

    ``finish_reason`` 'length' means that the text was cut off, 'error' that there is none: ``error`` then says why, in
    words that begin with a short reason and a colon, and ``attempts`` how often the request was tried (0: it never
    could be).
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    error: str | None = None
    attempts: int = 1


def failed(reason: str, detail: str, prompt_tokens: int = 0, attempts: int = 1) -> Completion:
    """A request without an answer."""
    return Completion("", "error", prompt_tokens, 0, f"{reason}: {detail}", attempts)


class TextEngine(Protocol):
    """Generates text with one model.

    ``identity`` is part of the cache key: engines whose texts differ have different identities. A request that cannot
    be answered (too long for the model's context, refused by a server) is ``failed`` and the others are answered;
    GenerationError means that the engine itself is at its end.
    """

    @property
    def model_digest(self) -> str: ...

    @property
    def identity(self) -> str: ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """One completion per request, in order."""
        ...

    def close(self) -> None:
        """End the processes and give back the memory that the engine holds. It is not used afterwards."""
        ...

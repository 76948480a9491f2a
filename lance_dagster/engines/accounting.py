"""What generation costs: tokens, seconds and money of a stage, its budget, and the sum over all runs of an asset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from upath import UPath

from lance_dagster.engines.engine import GenerationRequest
from lance_dagster.settings import PriceSettings
from lance_dagster.storage.files import read_json, write_json

_MILLION, _HOUR = 1e6, 3600.0


@dataclass
class Usage:
    """What a stage cost. Tokens and seconds count what was generated now; ``truncated`` counts cached texts too.

    ``cached_requests``: answered without generating, from the cache or as a repetition within the stage. ``seconds``:
    generating, ``load_seconds``: loading the engine; ``gpus``: how many it holds. Tokens of failed requests count.
    ``answered_…_tokens`` are those of all answers, cached ones included.
    """

    requests: int = 0
    cached_requests: int = 0
    generated_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0
    failed: int = 0
    seconds: float = 0.0
    load_seconds: float = 0.0
    gpus: int = 0
    answered_prompt_tokens: int = 0
    answered_completion_tokens: int = 0

    @property
    def gpu_seconds(self) -> float:
        return (self.seconds + self.load_seconds) * self.gpus

    def cost(self, price: PriceSettings) -> float:
        """In the currency of the price: tokens, and the hours in which the engine was loaded or generated."""
        return _cost(price, self.prompt_tokens, self.completion_tokens, self.seconds + self.load_seconds)

    def metadata(self, price: PriceSettings) -> dict[str, float | int]:
        """Stable keys for asset metadata; ``tokens_per_second`` counts generated tokens that were not cached."""
        rate = self.completion_tokens / self.seconds if self.seconds else 0.0
        return {
            "generation/requests": self.requests,
            "generation/cached_requests": self.cached_requests,
            "generation/prompt_tokens": self.prompt_tokens,
            "generation/completion_tokens": self.completion_tokens,
            "generation/truncated": self.truncated,
            "generation/failed": self.failed,
            "generation/seconds": round(self.seconds, 3),
            "generation/wall_seconds": round(self.seconds + self.load_seconds, 3),
            "generation/gpu_seconds": round(self.gpu_seconds, 3),
            "generation/tokens_per_second": round(rate, 1),
            "generation/cost": round(self.cost(price), 6),
        }

    def bound(self, price: PriceSettings, requests: Sequence[GenerationRequest]) -> float:
        """The most that generating these next can cost.

        A prompt has no more tokens than bytes, and an answer no more than its limit; hours are those that a token has
        taken so far.
        """
        prompt = sum(len(message["content"].encode()) + 16 for request in requests for message in request.messages)
        new = sum(request.sampling.max_new_tokens for request in requests)
        seconds = new * self.seconds / self.completion_tokens if self.completion_tokens else 0.0
        return _cost(price, prompt, new, seconds)


def _cost(price: PriceSettings, prompt_tokens: float, completion_tokens: float, seconds: float) -> float:
    tokens = prompt_tokens * price.input_per_million + completion_tokens * price.output_per_million
    return tokens / _MILLION + seconds * price.per_hour / _HOUR


@dataclass(frozen=True)
class Spent:
    """What was generated for one asset and iteration so far, by every run of it, failed and killed ones included."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    cost: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @classmethod
    def of(cls, usage: Usage, price: PriceSettings) -> Spent:
        wall = usage.seconds + usage.load_seconds
        counts = (usage.generated_requests, usage.prompt_tokens, usage.completion_tokens)
        return cls(*counts, wall, usage.gpu_seconds, usage.cost(price))

    @classmethod
    def read(cls, path: UPath) -> Spent:
        """What ``SpendingLog`` wrote; nothing if there is no such file."""
        return cls(**read_json(path, f"the spending log {path}")) if path.exists() else cls()


class SpendingLog:
    """Adds a stage's usage to what earlier runs of the same asset and iteration spent, after every shard."""

    def __init__(self, path: UPath, price: PriceSettings) -> None:
        self._path, self._price, self._before = path, price, Spent.read(path)

    def __call__(self, usage: Usage) -> None:
        total = self._before + Spent.of(usage, self._price)
        write_json(self._path, {field.name: getattr(total, field.name) for field in fields(total)})

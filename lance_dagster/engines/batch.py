"""Running many requests through an engine: in shards that are kept, with progress and accounting.

A shard's completions are written once, under the digest of everything that decides them (model, engine, prompts,
sampling, seeds). A stage that was killed resumes at its first unwritten shard, and a stage whose requests did not
change costs no generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from upath import UPath

from lance_dagster.engines.engine import Completion, GenerationRequest, TextEngine
from lance_dagster.errors import GenerationError
from lance_dagster.storage.files import json_digest
from lance_dagster.storage.tables import read_table, write_table

_COMPLETIONS = pa.schema(
    [
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)


@dataclass
class Usage:
    """What a stage cost: requests, tokens in and out, seconds spent generating, and what came from the cache."""

    requests: int = 0
    cached_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0
    seconds: float = 0.0

    def metadata(self) -> dict[str, float | int]:
        """Stable keys for asset metadata; ``tokens_per_second`` counts generated tokens that were not cached."""
        rate = self.completion_tokens / self.seconds if self.seconds else 0.0
        return {
            "generation/requests": self.requests,
            "generation/cached_requests": self.cached_requests,
            "generation/prompt_tokens": self.prompt_tokens,
            "generation/completion_tokens": self.completion_tokens,
            "generation/truncated": self.truncated,
            "generation/seconds": round(self.seconds, 3),
            "generation/tokens_per_second": round(rate, 1),
        }


@dataclass
class BatchRunner:
    """One stage's way to generate. ``cache`` is a folder; ``log`` gets a progress line per shard.

    ``load`` is called at the first request that is not in the cache, so a cached stage loads no model.
    """

    load: Callable[[], TextEngine]
    model_digest: str
    engine_identity: str
    cache: UPath
    shard_rows: int
    log: Callable[[str], None]
    usage: Usage = field(default_factory=Usage)
    _engine: TextEngine | None = None

    def generate(self, requests: Sequence[GenerationRequest], what: str) -> list[Completion]:
        """Completions of all requests, in order. ``what`` names the work in progress lines and errors."""
        completions: list[Completion] = []
        for start in range(0, len(requests), self.shard_rows):
            shard = requests[start : start + self.shard_rows]
            completions += self._shard(shard, f"{what} {start}..{start + len(shard) - 1}")
            self.log(
                f"{what}: {len(completions)}/{len(requests)}"
                f" ({self.usage.completion_tokens:,} tokens in {self.usage.seconds:.1f} s)"
            )
        self.usage.requests += len(requests)
        self.usage.truncated += sum(completion.finish_reason == "length" for completion in completions)
        return completions

    def _shard(self, shard: Sequence[GenerationRequest], what: str) -> list[Completion]:
        path = self.cache / self.model_digest / f"{self._key(shard)}.parquet"
        if path.exists():
            completions = [Completion(**row) for row in read_table(path).to_pylist()]
            if len(completions) == len(shard):
                self.usage.cached_requests += len(shard)
                return completions
        if self._engine is None:
            self._engine = self.load()
        started = time.monotonic()
        completions = self._engine.generate(shard)
        self.usage.seconds += time.monotonic() - started
        if len(completions) != len(shard):
            raise GenerationError(f"{what}: the engine answered {len(completions)} of {len(shard)} requests")
        self.usage.prompt_tokens += sum(completion.prompt_tokens for completion in completions)
        self.usage.completion_tokens += sum(completion.completion_tokens for completion in completions)
        columns = {name: [getattr(completion, name) for completion in completions] for name in _COMPLETIONS.names}
        write_table(path, pa.table(columns, schema=_COMPLETIONS))
        return completions

    def _key(self, shard: Sequence[GenerationRequest]) -> str:
        parts = [(list(r.messages), r.sampling.model_dump(), r.seed) for r in shard]
        return json_digest([self.engine_identity, parts])

"""Running many requests through an engine: in shards that are kept, with progress and accounting.

A completion is kept under the digest of everything that decides it: model, engine, prompt, sampling, seed. Shards of
them are written as they are generated, so a stage that was killed resumes at its first unwritten shard, and only
requests that were never answered cost anything: a changed threshold generates nothing anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from lance_dagster.engines.engine import Completion, GenerationRequest, TextEngine
from lance_dagster.errors import ArtifactError, GenerationError
from lance_dagster.storage.files import json_digest
from lance_dagster.storage.tables import read_table, write_table

_COMPLETIONS = pa.schema(
    [
        ("request", pa.string()),  # digest of the request and the engine; the model is the folder's name
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)


@dataclass
class Usage:
    """What a stage cost. Tokens and seconds count what was generated now; ``truncated`` counts cached texts too.

    ``cached_requests``: answered without generating, from the cache or as a repetition within the stage.
    """

    requests: int = 0
    cached_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0
    failed: int = 0
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
            "generation/failed": self.failed,
            "generation/seconds": round(self.seconds, 3),
            "generation/tokens_per_second": round(rate, 1),
        }


@dataclass
class BatchRunner:
    """One stage's way to generate. ``cache`` is a folder; ``log`` gets a progress line per shard.

    ``load`` is called at the first request that is not in the cache, so a cached stage loads no model. What it
    returns must be of ``model_digest`` and ``engine_identity``, under which the completions are kept. Requests that
    failed are not kept, so another run tries them again.
    """

    load: Callable[[], TextEngine]
    model_digest: str
    engine_identity: str
    cache: UPath
    shard_rows: int
    log: Callable[[str], None]
    max_failed_share: float = 0.0
    usage: Usage = field(default_factory=Usage)
    _engine: TextEngine | None = None

    def generate(self, requests: Sequence[GenerationRequest], what: str) -> list[Completion]:
        """Completions of all requests, in order.

        ``what`` ('review') names the work in progress lines and errors, and the cache's folder. Raises GenerationError
        where the engine fails, or more than ``max_failed_share`` of the requests do; the shards so far stay.
        """
        folder = self.cache / self.model_digest / what
        keys = [self._key(request) for request in requests]
        completions = self._cached(folder, keys)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in completions}
        cached = len(requests) - len(missing)
        if cached:
            self.log(f"{what}: {cached}/{len(requests)} from the cache")
        unanswered = list(missing)
        failures: dict[str, Completion] = {}
        for start in range(0, len(unanswered), self.shard_rows):
            shard = {key: missing[key] for key in unanswered[start : start + self.shard_rows]}
            done = start + len(shard)
            generated = self._generated(folder, shard, f"{what}, requests {start}..{done - 1} of {len(missing)}")
            completions |= generated
            failures |= {key: answer for key, answer in generated.items() if answer.error is not None}
            self._check_failures(what, keys, failures)
            self.log(
                f"{what}: {cached + done}/{len(requests)}"
                f" ({self.usage.completion_tokens:,} tokens in {self.usage.seconds:.1f} s)"
            )
        answers = [completions[key] for key in keys]
        self.usage.requests += len(requests)
        self.usage.cached_requests += cached
        self.usage.truncated += sum(answer.finish_reason == "length" for answer in answers)
        self.usage.failed += sum(answer.error is not None for answer in answers)
        return answers

    def _cached(self, folder: UPath, keys: Sequence[str]) -> dict[str, Completion]:
        """What earlier runs kept of these requests. A shard that cannot be read is reported and does not count."""
        found: dict[str, Completion] = {}
        if not keys or not folder.exists():
            return found
        wanted = pa.array(set(keys), pa.string())
        for path in sorted(folder.glob("*.parquet")):
            try:
                shard = read_table(path)
            except ArtifactError as error:
                self.log(f"cached completions are unreadable and will be generated again: {error}")
                continue
            if not shard.schema.equals(_COMPLETIONS):
                self.log(f"cached completions of another layout are left alone: {path}")
                continue
            for row in shard.filter(pc.is_in(shard["request"], wanted)).to_pylist():
                key = row.pop("request")
                found[key] = Completion(**row)
        return found

    def _generated(self, folder: UPath, shard: Mapping[str, GenerationRequest], what: str) -> dict[str, Completion]:
        engine = self._loaded()
        started = time.monotonic()
        try:
            completions = engine.generate(list(shard.values()))
        except GenerationError as error:
            raise GenerationError(f"{what}: {error}") from error
        self.usage.seconds += time.monotonic() - started
        if len(completions) != len(shard):
            raise GenerationError(
                f"{what}: the engine {self.engine_identity} gave {len(completions)} completions for {len(shard)} "
                "requests. Nothing of them was kept; run the asset again, and report it if it stays."
            )
        self.usage.prompt_tokens += sum(completion.prompt_tokens for completion in completions)
        self.usage.completion_tokens += sum(completion.completion_tokens for completion in completions)
        answered = {key: answer for key, answer in zip(shard, completions, strict=True) if answer.error is None}
        columns = {name: [getattr(answer, name) for answer in answered.values()] for name in _COMPLETIONS.names[1:]}
        if answered:
            table = pa.table({"request": list(answered), **columns}, schema=_COMPLETIONS)
            write_table(folder / f"{json_digest(list(answered))}.parquet", table)
        return dict(zip(shard, completions, strict=True))

    def _check_failures(self, what: str, keys: Sequence[str], failures: Mapping[str, Completion]) -> None:
        """Stop the stage once too many of its requests have failed."""
        count = sum(key in failures for key in keys)
        if count <= self.max_failed_share * len(keys):
            return
        position = next(i for i, key in enumerate(keys) if key in failures)
        raise GenerationError(
            f"{what}: {count} of {len(keys)} requests failed, more than the share of {self.max_failed_share:g} that "
            f"engine.max_failed_share allows. The first is request {position}: {failures[keys[position]].error} "
            "What was answered is kept; another run asks only the others."
        )

    def _loaded(self) -> TextEngine:
        if self._engine is None:
            engine = self.load()
            if (engine.identity, engine.model_digest) != (self.engine_identity, self.model_digest):
                raise GenerationError(
                    f"the engine {engine.identity!r} with model {engine.model_digest} was loaded, but its texts would "
                    f"be kept as those of {self.engine_identity!r} with model {self.model_digest}; make them agree"
                )
            self._engine = engine
        return self._engine

    def _key(self, request: GenerationRequest) -> str:
        return json_digest([self.engine_identity, list(request.messages), request.sampling.model_dump(), request.seed])

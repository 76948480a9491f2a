"""Running many requests through an engine: in shards that are kept, with progress and accounting.

A completion is kept under the digest of everything that decides it (completion_cache.py). Shards of them are written as
they are generated, so a stage that was killed resumes at its first unwritten shard, and only requests that were never
answered cost anything: a changed threshold generates nothing anew, more samples only the missing ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from upath import UPath

from lance_dagster.engines.completion_cache import CompletionCache
from lance_dagster.engines.engine import Completion, GenerationRequest, TextEngine
from lance_dagster.errors import GenerationError
from lance_dagster.prompts.prompt_sets import Message
from lance_dagster.storage.files import json_digest

# Part of every request's digest. Raise it when chat_prompts.py makes another prompt of the same messages.
_RENDERING = 1


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
        cache = CompletionCache(self.cache, self.log)
        keys = self._keys(requests)
        completions = cache.find(self.model_digest, what, keys)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in completions}
        cached = len(requests) - len(missing)
        if cached:
            self.log(f"{what}: {cached}/{len(requests)} from the cache")
        unanswered = list(missing)
        failures: dict[str, Completion] = {}
        for start in range(0, len(unanswered), self.shard_rows):
            shard = {key: missing[key] for key in unanswered[start : start + self.shard_rows]}
            done = start + len(shard)
            generated = self._generated(shard, f"{what}, requests {start}..{done - 1} of {len(missing)}")
            answered = {key: answer for key, answer in generated.items() if answer.error is None}
            if answered:
                cache.add(self.model_digest, what, answered)
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

    def _generated(self, shard: Mapping[str, GenerationRequest], what: str) -> dict[str, Completion]:
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

    def _keys(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """The digest of each request. The samples of one row share their messages, which are hashed once."""
        keys, prompt = [], ""
        messages: tuple[Message, ...] | None = None
        for request in requests:
            if request.messages is not messages:
                messages, prompt = request.messages, json_digest(list(request.messages))
            sampling = request.sampling
            decisive = [sampling.temperature, sampling.top_p, sampling.max_new_tokens, request.seed]
            keys.append(json_digest([self.engine_identity, _RENDERING, prompt, *decisive]))
        return keys

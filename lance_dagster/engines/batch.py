"""Running many requests through an engine: in shards that are kept, with progress and accounting.

A completion is kept under the digest of everything that decides it (completion_cache.py). Shards of them are written as
they are generated, so a stage that was killed resumes at its first unwritten shard, and only requests that were never
answered cost anything: a changed threshold generates nothing anew, more samples only the missing ones.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from upath import UPath

from lance_dagster.engines.accounting import Usage
from lance_dagster.engines.completion_cache import CompletionCache
from lance_dagster.engines.engine import Completion, GenerationRequest, TextEngine
from lance_dagster.errors import GenerationError
from lance_dagster.settings import PriceSettings
from lance_dagster.storage.files import json_digest

# Part of every request's digest. Raise it when chat_prompts.py makes another prompt of the same messages.
_RENDERING = 1


@dataclass
class BatchRunner:
    """One stage's way to generate. ``cache`` is a folder; ``log`` gets a progress line per shard.

    ``load`` is called at the first request that is not in the cache, so a cached stage loads no model. What it
    returns must be of ``model_digest`` and ``engine_identity``, under which the completions are kept. Requests that
    failed are not kept, so another run tries them again. ``record`` is told the usage after every shard; once the next
    request could bring its cost over ``max_cost``, the stage stops.
    """

    load: Callable[[], TextEngine]
    model_digest: str
    engine_identity: str
    cache: UPath
    shard_rows: int
    log: Callable[[str], None]
    max_failed_share: float = 0.0
    price: PriceSettings = field(default_factory=PriceSettings)
    max_cost: float | None = None
    record: Callable[[Usage], None] = lambda usage: None
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
        self.usage.requests += len(requests)
        self.usage.cached_requests += cached
        done = 0
        while done < len(unanswered):
            start = done
            shard = self._affordable(what, {key: missing[key] for key in unanswered[start : start + self.shard_rows]})
            done += len(shard)
            generated = self._generated(shard, f"{what}, requests {start}..{done - 1} of {len(missing)}")
            answered = {key: answer for key, answer in generated.items() if answer.error is None}
            if answered:
                cache.add(self.model_digest, what, answered)
            completions |= generated
            self.record(self.usage)
            failures |= {key: answer for key, answer in generated.items() if answer.error is not None}
            self._check_failures(what, keys, failures)
            self.log(
                f"{what}: {cached + done}/{len(requests)}"
                f" ({self.usage.completion_tokens:,} tokens in {self.usage.seconds:.1f} s)"
            )
        answers = [completions[key] for key in keys]
        self.usage.truncated += sum(answer.finish_reason == "length" for answer in answers)
        self.usage.answered_prompt_tokens += sum(answer.prompt_tokens for answer in answers)
        self.usage.answered_completion_tokens += sum(answer.completion_tokens for answer in answers)
        self.usage.failed += sum(answer.error is not None for answer in answers)
        return answers

    def metadata(self) -> dict[str, float | int]:
        """The usage so far as asset metadata."""
        return self.usage.metadata(self.price)

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
        self.usage.generated_requests += len(shard)
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

    def _affordable(self, what: str, shard: dict[str, GenerationRequest]) -> dict[str, GenerationRequest]:
        """The first of these requests that cannot bring the stage over its budget, at the most that they can cost."""
        keys, spent = list(shard), self.usage.cost(self.price)
        if self.max_cost is None:
            return shard
        while keys and spent + self.usage.bound(self.price, [shard[key] for key in keys]) > self.max_cost:
            keys = keys[: len(keys) // 2]
        if not keys:
            raise GenerationError(
                f"{what}: the stage has spent {spent:.6g} {self.price.currency}, and the next request could bring it "
                f"over engine.max_stage_cost, {self.max_cost:g}. What was answered is kept: raise the budget and run "
                "the asset again to go on."
            )
        return {key: shard[key] for key in keys}

    def _loaded(self) -> TextEngine:
        if self._engine is None:
            started = time.monotonic()
            engine = self.load()
            self.usage.load_seconds += time.monotonic() - started
            if (engine.identity, engine.model_digest) != (self.engine_identity, self.model_digest):
                raise GenerationError(
                    f"the engine {engine.identity!r} with model {engine.model_digest} was loaded, but its texts would "
                    f"be kept as those of {self.engine_identity!r} with model {self.model_digest}; make them agree"
                )
            self._engine = engine
        return self._engine

    def _keys(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """The digest of each request. The samples of one row share their messages, which are hashed once."""
        keys, common = [], ""
        last: GenerationRequest | None = None
        for request in requests:
            if last is None or request.messages is not last.messages or request.sampling is not last.sampling:
                sampling = request.sampling
                decisive = [sampling.temperature, sampling.top_p, sampling.max_new_tokens]
                common = json_digest([self.engine_identity, _RENDERING, list(request.messages), *decisive])
                last = request
            keys.append(hashlib.sha256(f"{common} {request.seed}".encode()).hexdigest()[:16])
        return keys

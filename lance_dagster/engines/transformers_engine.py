"""The `transformers` engine: batches of similar length, with a seed of its own for each request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lance_dagster.engines.chat_prompts import ChatPrompts
from lance_dagster.engines.decoding import decode
from lance_dagster.engines.engine import Completion, GenerationRequest
from lance_dagster.errors import GenerationError
from lance_dagster.settings import EngineSettings, ModelSettings


class TransformersEngine:
    """Loads a checkpoint folder and keeps it in memory. See decoding.py for how it samples."""

    def __init__(self, folder: Path, digest: str, model: ModelSettings, engine: EngineSettings) -> None:
        from lance_dagster.storage.models import load_model

        self.model_digest = digest
        self._settings = engine
        self.identity = f"transformers/{model.dtype}"
        self._prompts = ChatPrompts(folder)
        self._model: Any = load_model(folder, model).eval()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        encoded = [self._prompts.encode(request) for request in requests]
        completions = {i: prompt for i, prompt in enumerate(encoded) if isinstance(prompt, Completion)}
        prompts = {i: prompt for i, prompt in enumerate(encoded) if not isinstance(prompt, Completion)}
        for batch in self._batches(requests, prompts):
            completions |= zip(batch, self._generate_batch(requests, prompts, batch), strict=True)
        return [completions[i] for i in range(len(requests))]

    def close(self) -> None:
        self._model = None

    def _batches(self, requests: Sequence[GenerationRequest], encoded: Mapping[int, list[int]]) -> Iterator[list[int]]:
        """Indices of requests that go together: same sampling, similar length, within the limits of the settings."""
        order = sorted(encoded, key=lambda i: (requests[i].sampling.model_dump_json(), len(encoded[i]), encoded[i], i))
        batch: list[int] = []
        for index in order:
            sampling = requests[index].sampling
            width = len(encoded[index]) + sampling.max_new_tokens
            full = len(batch) >= self._settings.max_batch_rows
            heavy = width * (len(batch) + 1) > self._settings.max_batch_tokens
            if batch and (full or heavy or requests[batch[0]].sampling != sampling):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _generate_batch(
        self, requests: Sequence[GenerationRequest], encoded: Mapping[int, list[int]], batch: Sequence[int]
    ) -> list[Completion]:
        import torch

        sampling = requests[batch[0]].sampling
        prompts = [encoded[i] for i in batch]
        seeds = [requests[i].seed for i in batch]
        try:
            new = decode(self._model, prompts, seeds, sampling, self._prompts.ends, self._prompts.pad)
        except torch.OutOfMemoryError as error:
            raise GenerationError(
                f"{self._model.device} has too little memory for {len(batch)} prompts of up to "
                f"{max(map(len, prompts))} tokens and {sampling.max_new_tokens} new ones each: lower "
                f"engine.max_batch_tokens, which is {self._settings.max_batch_tokens:,}. Texts of earlier shards are "
                "kept."
            ) from error
        return [self._prompts.completion(prompt, tokens) for prompt, tokens in zip(prompts, new, strict=True)]

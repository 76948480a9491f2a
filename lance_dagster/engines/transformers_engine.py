"""The `transformers` engine: continuous batches of similar length, with a seed of its own for each request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lance_dagster.engines.chat_prompts import ChatPrompts
from lance_dagster.engines.decoding import Limits, decode
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
        for alike in self._alike(requests, prompts):
            completions |= zip(alike, self._decode(requests, prompts, alike), strict=True)
        return [completions[i] for i in range(len(requests))]

    def close(self) -> None:
        self._model = None

    def _alike(self, requests: Sequence[GenerationRequest], encoded: Mapping[int, list[int]]) -> Iterator[list[int]]:
        """Indices of requests with the same sampling, by the length of their prompts."""
        by_sampling: dict[str, list[int]] = {}
        for index in encoded:
            by_sampling.setdefault(requests[index].sampling.model_dump_json(), []).append(index)
        for indices in by_sampling.values():
            yield sorted(indices, key=lambda i: (len(encoded[i]), encoded[i], i))

    def _decode(
        self, requests: Sequence[GenerationRequest], encoded: Mapping[int, list[int]], alike: Sequence[int]
    ) -> list[Completion]:
        import torch

        chosen, sampling = self._settings, requests[alike[0]].sampling
        prompts = [encoded[i] for i in alike]
        try:
            new = decode(
                self._model,
                prompts,
                [requests[i].seed for i in alike],
                sampling,
                self._prompts.ends,
                self._prompts.pad,
                Limits(chosen.max_batch_rows, chosen.max_batch_tokens),
            )
        except torch.OutOfMemoryError as error:
            raise GenerationError(
                f"{self._model.device} has too little memory for batches of up to {chosen.max_batch_rows} prompts "
                f"of up to {max(map(len, prompts))} tokens and {sampling.max_new_tokens} new ones each: lower "
                f"engine.max_batch_tokens, which is {chosen.max_batch_tokens:,}. Texts of earlier shards are kept."
            ) from error
        return [self._prompts.completion(prompt, tokens) for prompt, tokens in zip(prompts, new, strict=True)]

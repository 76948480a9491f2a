"""The `transformers` engine: `generate` in batches of similar length, with a seed of its own for each request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lance_dagster.engines.chat_prompts import ChatPrompts
from lance_dagster.engines.engine import Completion, GenerationRequest
from lance_dagster.errors import GenerationError
from lance_dagster.settings import EngineSettings, ModelSettings, SamplingSettings

if TYPE_CHECKING:
    import torch


class TransformersEngine:
    """Loads a checkpoint folder and keeps it in memory.

    Sampling is by inverse transform: one uniform number per request and step, drawn from the request's seed, picks
    the token from the nucleus. So a request's text does not depend on the other requests of its batch, up to the
    rounding of the logits.
    """

    def __init__(self, folder: Path, digest: str, model: ModelSettings, engine: EngineSettings) -> None:
        from transformers import GenerationConfig

        from lance_dagster.storage.models import load_model

        self._digest = digest
        self._settings = engine
        self._identity = f"transformers/{model.dtype}"
        self._prompts = ChatPrompts(folder)
        self._model = load_model(folder, model).eval()
        # Hub models bring sampling of their own, such as a repetition penalty. The settings alone decide.
        self._model.generation_config = GenerationConfig()

    @property
    def model_digest(self) -> str:
        return self._digest

    @property
    def identity(self) -> str:
        return self._identity

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
        order = sorted(encoded, key=lambda i: (requests[i].sampling.model_dump_json(), len(encoded[i]), i))
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
        from transformers import LogitsProcessorList

        sampling = requests[batch[0]].sampling
        pad, ends = self._prompts.pad, self._prompts.ends
        width = max(len(encoded[i]) for i in batch)
        ids = torch.full((len(batch), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            ids[row, width - len(encoded[index]) :] = torch.tensor(encoded[index])
            mask[row, width - len(encoded[index]) :] = 1
        processors = LogitsProcessorList()
        if sampling.temperature > 0:
            seeds = [requests[i].seed for i in batch]
            processors.append(_seeded_nucleus(seeds, sampling, width))
        device = self._model.device
        try:
            with torch.inference_mode():
                output = self._model.generate(
                    ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=sampling.max_new_tokens,
                    do_sample=False,
                    logits_processor=processors,
                    pad_token_id=pad,
                    eos_token_id=sorted(ends),
                )
        except torch.OutOfMemoryError as error:
            raise GenerationError(
                f"{device} has too little memory for {len(batch)} prompts of up to {width} tokens and "
                f"{sampling.max_new_tokens} new ones each: lower engine.max_batch_tokens, which is "
                f"{self._settings.max_batch_tokens:,}. Texts of earlier shards are kept."
            ) from error
        return [
            self._prompts.completion(encoded[index], output[row, width:].tolist()) for row, index in enumerate(batch)
        ]


def _seeded_nucleus(seeds: Sequence[int], sampling: SamplingSettings, prompt_width: int) -> Any:
    """A logits processor that leaves one token per row: the sample of that row's seed at this step.

    scores: (rows, vocabulary). Draws from the smallest set of tokens whose probabilities at the temperature add up
    to at least top_p.
    """
    import numpy as np
    import torch
    from transformers import LogitsProcessor

    uniforms = torch.from_numpy(
        np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
    )

    class SeededNucleus(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            step = input_ids.shape[1] - prompt_width
            heated = torch.softmax(scores.double() / sampling.temperature, -1)
            probabilities, tokens = heated.sort(stable=True, dim=-1, descending=True)
            cumulative = probabilities.cumsum(-1)
            nucleus = cumulative - probabilities < sampling.top_p
            mass = (probabilities * nucleus).sum(-1, keepdim=True)
            target = uniforms[:, step : step + 1].to(scores.device) * mass
            choice = (cumulative <= target).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
            picked = tokens.gather(-1, choice)
            return torch.full_like(scores, float("-inf")).scatter(-1, picked, 0.0)

    return SeededNucleus()

"""Generating with a transformers model in batches that shrink: a row that has ended costs nothing any more.

``generate`` of transformers runs every row of a batch until the longest one ends, and computes a prompt anew for each
of its samples. Here equal prompts are computed once, and rows leave the batch, keys and values included, as they end.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any

from lance_dagster.settings import SamplingSettings

if TYPE_CHECKING:
    import torch

_ENDED_SHARE = 0.125  # rows are taken out once so many have ended: each time copies what is left


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: SamplingSettings,
    ends: Set[int],
    pad: int,
) -> list[list[int]]:
    """New tokens of each prompt, up to and including the one of ``ends`` that it ends with.

    Each row samples with its own seed: one uniform number per step picks the token, so a row's text does not depend on
    the other rows, up to the rounding of the logits.
    """
    import torch
    from transformers import DynamicCache

    picker = _Picker(seeds, sampling, model.device)
    stop = torch.tensor(sorted(ends), device=model.device)
    new: list[list[int]] = [[] for _ in prompts]
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        logits, mask = _prefill(model, prompts, pad, cache)
        rows = torch.arange(len(prompts), device=model.device)
        alive = torch.ones_like(rows, dtype=torch.bool)
        for step in range(sampling.max_new_tokens):
            tokens = picker(logits, rows, step)
            for row, token, living in zip(rows.tolist(), tokens.tolist(), alive.tolist(), strict=True):
                if living:
                    new[row].append(token)
            alive &= ~torch.isin(tokens, stop)
            left = int(alive.sum())
            if not left or step + 1 == sampling.max_new_tokens:
                break
            if left < len(rows) * (1 - _ENDED_SHARE):
                kept = alive.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                rows, tokens, mask = rows[kept], tokens[kept], mask[kept]
                alive = torch.ones_like(rows, dtype=torch.bool)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            position = mask.sum(1, keepdim=True) - 1
            output = model(input_ids=tokens[:, None], attention_mask=mask, position_ids=position, past_key_values=cache)
            logits = output.logits[:, -1]
    return new


def _prefill(model: Any, prompts: Sequence[Sequence[int]], pad: int, cache: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits behind each prompt, (rows, vocabulary), and the attention mask, (rows, width). Fills the cache.

    Padding is on the left, and each different prompt is computed once.
    """
    import torch

    different = {tuple(prompt): None for prompt in prompts}
    order = {prompt: position for position, prompt in enumerate(different)}
    width = max(map(len, different))
    ids = torch.full((len(different), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(different):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, logits_to_keep=1)
    logits = output.logits[:, -1]
    if len(different) == len(prompts):
        return logits, mask
    rows = torch.tensor([order[tuple(prompt)] for prompt in prompts], device=model.device)
    cache.batch_select_indices(rows)
    return logits[rows], mask[rows]


class _Picker:
    """The next token of each row: the most probable one at temperature 0, else a sample from the nucleus, the smallest
    set of tokens whose probabilities at the temperature add up to at least top_p."""

    def __init__(self, seeds: Sequence[int], sampling: SamplingSettings, device: Any) -> None:
        import numpy as np
        import torch

        self._sampling = sampling
        if sampling.temperature > 0:
            uniforms = np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
            self._uniforms = torch.from_numpy(uniforms).to(device)

    def __call__(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        """``logits``: (rows, vocabulary); ``rows``: whose they are."""
        if self._sampling.temperature == 0:
            return logits.argmax(-1)
        heated = (logits.double() / self._sampling.temperature).softmax(-1)
        probabilities, tokens = heated.sort(stable=True, dim=-1, descending=True)
        cumulative = probabilities.cumsum(-1)
        mass = (probabilities * (cumulative - probabilities < self._sampling.top_p)).sum(-1, keepdim=True)
        target = self._uniforms[rows, step][:, None] * mass
        choice = (cumulative <= target).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
        return tokens.gather(-1, choice)[:, 0]

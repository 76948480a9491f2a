"""Generating with a transformers model in a batch that rows leave as they end, and waiting ones join.

``generate`` of transformers runs every row of a batch until the longest one ends, and computes a prompt anew for each
of its samples. Here a row that has ended makes room, keys and values included, for the next one (continuous batching:
Yu et al., OSDI 2022), and equal prompts that join together are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lance_dagster.settings import SamplingSettings

if TYPE_CHECKING:
    import torch

_ENDED_SHARE = 0.125  # rows leave and join once more than this share has ended: each time copies the cache


@dataclass(frozen=True)
class Limits:
    """Of a batch: its rows, and its rows times the tokens, prompt included, that the longest of them may come to."""

    rows: int
    tokens: int

    def admitted(self, waiting: Sequence[int], running: Sequence[int]) -> int:
        """How many of those that wait go in, by what each may come to; at least one if nothing is running."""
        longest, rows = max(running, default=0), len(running)
        count = 0
        for length in waiting:
            longest = max(longest, length)
            if rows + count and (rows + count >= self.rows or longest * (rows + count + 1) > self.tokens):
                break
            count += 1
        return count


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: SamplingSettings,
    ends: Set[int],
    pad: int,
    limits: Limits,
) -> list[list[int]]:
    """New tokens of each prompt, up to and including the one of ``ends`` that it ends with.

    Prompts are taken in their order; similar lengths beside each other waste least. Each row samples with its own seed:
    one uniform number per step picks the token, so a row's text does not depend on the other rows, up to the rounding
    of the logits.
    """
    import torch

    new: list[list[int]] = [[] for _ in prompts]
    most = [len(prompt) + sampling.max_new_tokens for prompt in prompts]
    batch = _Batch(model, sampling, pad)
    waiting, room = 0, True  # the first row that waits; whether rows have left
    with torch.inference_mode():
        while batch.rows or waiting < len(prompts):
            if room and batch.may_be_joined:
                running = [most[row] for row in batch.rows]
                count = limits.admitted(most[waiting : waiting + limits.rows], running)
                joining = slice(waiting, waiting + count)
                batch.join(range(waiting, waiting + count), prompts[joining], seeds[joining])
                waiting, room = waiting + count, False
                longest = max(most[row] for row in batch.rows)
            tokens = batch.pick()
            for position, (row, token) in enumerate(zip(batch.rows, tokens.tolist(), strict=True)):
                if batch.living[position]:
                    new[row].append(token)
                    batch.living[position] = token not in ends and len(new[row]) < sampling.max_new_tokens
            left = sum(batch.living)
            if left < len(batch.rows) and (left < len(batch.rows) * (1 - _ENDED_SHARE) or batch.width >= longest):
                tokens, room = tokens[batch.leave()], True
            if left:
                batch.step(tokens)
    return new


class _Batch:
    """Rows that are generated together: keys and values in ``_cache``, padded on the left.

    ``rows``: which prompts they are; ``living``: those that have not ended. Each row has the logits of its next token,
    (rows, vocabulary), the attention mask, (rows, width), and the uniform numbers of all its tokens.
    """

    def __init__(self, model: Any, sampling: SamplingSettings, pad: int) -> None:
        self._model, self._sampling, self._pad = model, sampling, pad
        self.rows: list[int] = []
        self.living: list[bool] = []
        self._cache: Any = None
        self._logits: torch.Tensor
        self._mask: torch.Tensor
        self._uniforms: torch.Tensor
        self._steps: torch.Tensor  # tokens that each row has

    @property
    def width(self) -> int:
        return int(self._mask.shape[1])

    @property
    def may_be_joined(self) -> bool:
        """Layers that keep more or less than keys and values of all tokens take new rows only when there are none."""
        from transformers.cache_utils import DynamicLayer

        return not self.rows or all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def join(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> None:
        """Compute prompts and put them behind the rows that are there."""
        import torch
        from transformers import DynamicCache

        if not rows:
            return
        cache = DynamicCache(config=self._model.config)
        logits, mask = _prefill(self._model, prompts, self._pad, cache)
        uniforms = _uniforms(seeds, self._sampling).to(mask.device)
        steps = torch.zeros(len(rows), dtype=torch.long, device=mask.device)
        if self.rows:
            width = max(self.width, mask.shape[1])
            for own, other in zip(self._cache.layers, cache.layers, strict=True):
                own.keys = torch.cat([_widened(own.keys, width, 2), _widened(other.keys, width, 2)])
                own.values = torch.cat([_widened(own.values, width, 2), _widened(other.values, width, 2)])
            cache = self._cache
            mask = torch.cat([_widened(self._mask, width, 1), _widened(mask, width, 1)])
            logits = torch.cat([self._logits, logits])
            uniforms = torch.cat([self._uniforms, uniforms])
            steps = torch.cat([self._steps, steps])
        self._cache, self._mask, self._logits, self._uniforms, self._steps = cache, mask, logits, uniforms, steps
        self.rows += rows
        self.living += [True] * len(rows)

    def leave(self) -> torch.Tensor:
        """Take the rows out that have ended; returns the positions of the others. Unused width goes with them."""
        import torch

        kept = [position for position, living in enumerate(self.living) if living]
        positions = torch.tensor(kept, dtype=torch.long, device=self._mask.device)
        self.rows, self.living = [self.rows[position] for position in kept], [True] * len(kept)
        if kept:
            self._cache.reorder_cache(positions)  # of all types of layers; batch_select_indices is not
            self._mask, self._logits = self._mask[positions], self._logits[positions]
            self._uniforms, self._steps = self._uniforms[positions], self._steps[positions]
            if self.may_be_joined:
                width = int(self._mask.sum(1).max())
                self._mask = self._mask[:, -width:]
                for layer in self._cache.layers:
                    layer.keys, layer.values = layer.keys[:, :, -width:], layer.values[:, :, -width:]
        return positions

    def pick(self) -> torch.Tensor:
        """The next token of each row: the most probable one at temperature 0, else a sample from the nucleus, the
        smallest set of tokens whose probabilities at the temperature add up to at least top_p."""
        if self._sampling.temperature == 0:
            return self._logits.argmax(-1)
        heated = (self._logits.double() / self._sampling.temperature).softmax(-1)
        probabilities, tokens = heated.sort(stable=True, dim=-1, descending=True)
        cumulative = probabilities.cumsum(-1)
        mass = (probabilities * (cumulative - probabilities < self._sampling.top_p)).sum(-1, keepdim=True)
        number = self._steps.clamp(max=self._sampling.max_new_tokens - 1)  # what ended rows would say is not heard
        target = self._uniforms.gather(1, number[:, None]) * mass
        choice = (cumulative <= target).sum(-1, keepdim=True).clamp(max=heated.shape[-1] - 1)
        return tokens.gather(-1, choice)[:, 0]

    def step(self, tokens: torch.Tensor) -> None:
        """Give every row its next token. One that has ended stays where it is: its context may be full."""
        import torch

        living = torch.tensor(self.living, dtype=self._mask.dtype, device=self._mask.device)
        self._mask = torch.cat([self._mask, living[:, None]], dim=1)
        output = self._model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=self._mask.sum(1, keepdim=True) - 1,
            past_key_values=self._cache,
        )
        self._logits = output.logits[:, -1]
        self._steps = self._steps + 1


def _widened(values: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Zeros on the left of a dimension, up to a width."""
    import torch

    missing = list(values.shape)
    missing[dim] = width - values.shape[dim]
    return torch.cat([values.new_zeros(missing), values], dim=dim) if missing[dim] else values


def _uniforms(seeds: Sequence[int], sampling: SamplingSettings) -> torch.Tensor:
    """A number in [0, 1) for each token of each row, (rows, max_new_tokens); none at temperature 0."""
    import numpy as np
    import torch

    if sampling.temperature == 0:
        return torch.empty(len(seeds), 0, dtype=torch.float64)
    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds]))


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
    cache.reorder_cache(rows)
    return logits[rows], mask[rows]

"""Generating with a transformers model in a batch that rows leave as they end, and waiting ones join.

``generate`` of transformers runs every row of a batch until the longest one ends, and computes a prompt anew for each
of its samples. Here equal prompts are computed once, and a row that has ended makes room, keys and values included, for
the next one (continuous batching: Yu et al., OSDI 2022).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lance_dagster.settings import SamplingSettings

if TYPE_CHECKING:
    import torch

_ENDED_SHARE = 0.125  # rows leave and join once so many have ended: each time copies the cache


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
    stop = torch.tensor(sorted(ends), device=model.device)
    picker = _Picker(seeds, sampling, model.device)
    batch = _Batch(model, pad)
    waiting, room = 0, True  # the first row that waits; whether rows have left
    with torch.inference_mode():
        while len(batch) or waiting < len(prompts):
            if room and batch.may_be_joined:
                next_ones = range(waiting, min(waiting + limits.rows, len(prompts)))
                count = limits.admitted([most[row] for row in next_ones], [most[row] for row in batch.rows.tolist()])
                if count:
                    batch.join(next_ones[:count], [prompts[row] for row in next_ones[:count]])
                    waiting += count
                room = False
            tokens = picker(batch.logits, batch.rows, batch.steps)
            for row, token, living in zip(batch.rows.tolist(), tokens.tolist(), batch.alive.tolist(), strict=True):
                if living:
                    new[row].append(token)
            batch.alive &= ~torch.isin(tokens, stop) & (batch.steps + 1 < sampling.max_new_tokens)
            left = int(batch.alive.sum())
            if left < len(batch) * (1 - _ENDED_SHARE) or not left:
                tokens, room = tokens[batch.leave()], True
            if left:
                batch.step(tokens)
    return new


class _Batch:
    """Rows that are generated together: keys and values in ``cache``, padded on the left.

    ``rows``: which prompts they are; ``steps``: how many new tokens each has; ``logits``: of its next one, (rows,
    vocabulary); ``mask``: (rows, width).
    """

    def __init__(self, model: Any, pad: int) -> None:
        import torch

        self._model, self._pad = model, pad
        self.rows = torch.empty(0, dtype=torch.long, device=model.device)
        self.steps, self.alive = self.rows.clone(), self.rows.bool()
        self.mask = self.rows[:, None]
        self.logits: Any = None
        self._cache: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def may_be_joined(self) -> bool:
        """Layers that keep more or less than keys and values of all tokens take new rows only when there are none."""
        from transformers.cache_utils import DynamicLayer

        return not len(self) or all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def join(self, rows: range, prompts: Sequence[Sequence[int]]) -> None:
        """Compute prompts and put them behind the rows that are there."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        logits, mask = _prefill(self._model, prompts, self._pad, cache)
        joining = torch.arange(rows.start, rows.stop, device=mask.device)
        if not len(self):
            self._cache, self.logits, self.mask = cache, logits, mask
            self.rows, self.steps, self.alive = joining, torch.zeros_like(joining), torch.ones_like(joining).bool()
            return
        width = max(self.mask.shape[1], mask.shape[1])
        for own, other in zip(self._cache.layers, cache.layers, strict=True):
            own.keys = torch.cat([_widened(own.keys, width, 2), _widened(other.keys, width, 2)])
            own.values = torch.cat([_widened(own.values, width, 2), _widened(other.values, width, 2)])
        self.mask = torch.cat([_widened(self.mask, width, 1), _widened(mask, width, 1)])
        self.logits = torch.cat([self.logits, logits])
        self.rows = torch.cat([self.rows, joining])
        self.steps = torch.cat([self.steps, torch.zeros_like(joining)])
        self.alive = torch.cat([self.alive, torch.ones_like(joining).bool()])

    def leave(self) -> torch.Tensor:
        """Take the rows out that have ended; returns the positions of the others. Unused width goes with them."""
        kept = self.alive.nonzero()[:, 0]
        self._cache.batch_select_indices(kept)
        self.rows, self.steps, self.alive = self.rows[kept], self.steps[kept], self.alive[kept]
        self.mask, self.logits = self.mask[kept], self.logits[kept]
        if len(self) and self.may_be_joined:
            width = int(self.mask.sum(1).max())
            self.mask = self.mask[:, -width:]
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[:, :, -width:], layer.values[:, :, -width:]
        return kept

    def step(self, tokens: torch.Tensor) -> None:
        """Give every row its next token."""
        import torch

        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self), 1)], dim=1)
        output = self._model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.mask.sum(1, keepdim=True) - 1,
            past_key_values=self._cache,
        )
        self.logits = output.logits[:, -1]
        self.steps = self.steps + 1


def _widened(values: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Zeros on the left of a dimension, up to a width."""
    import torch

    missing = list(values.shape)
    missing[dim] = width - values.shape[dim]
    return torch.cat([values.new_zeros(missing), values], dim=dim) if missing[dim] else values


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

    def __call__(self, logits: torch.Tensor, rows: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """``logits``: (rows, vocabulary); ``rows``: whose they are; ``steps``: the number of the token, from 0."""
        if self._sampling.temperature == 0:
            return logits.argmax(-1)
        heated = (logits.double() / self._sampling.temperature).softmax(-1)
        probabilities, tokens = heated.sort(stable=True, dim=-1, descending=True)
        cumulative = probabilities.cumsum(-1)
        mass = (probabilities * (cumulative - probabilities < self._sampling.top_p)).sum(-1, keepdim=True)
        number = steps.clamp(max=self._sampling.max_new_tokens - 1)  # rows that have ended are not looked at
        target = self._uniforms[rows, number][:, None] * mass
        choice = (cumulative <= target).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
        return tokens.gather(-1, choice)[:, 0]

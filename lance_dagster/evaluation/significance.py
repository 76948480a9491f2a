"""Is one checkpoint better than another, on the same items? Paired, because both answered the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PairedDifference:
    """The mean of ``a - b`` over items, with a 95 % bootstrap interval, and McNemar's test where items are 0 or 1.

    ``gained`` items have a higher score under a, ``lost`` a lower one. ``p_value`` is two-sided and exact.
    """

    value: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float

    @property
    def beyond_noise(self) -> bool:
        """The interval does not hold 0."""
        return self.low > 0.0 or self.high < 0.0


def paired_difference(
    a: Sequence[float], b: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Compare two checkpoints item by item; ``a`` and ``b`` are in the same order of items. ValueError otherwise."""
    if len(a) != len(b) or not a:
        raise ValueError(f"two checkpoints must have answered the same items, at least one; got {len(a)} and {len(b)}")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    rng = np.random.default_rng(seed)
    block = max(1, 10_000_000 // len(differences))  # resamples at a time, so that memory stays bounded
    means = np.concatenate(
        [
            differences[rng.integers(0, len(differences), (min(block, resamples - done), len(differences)))].mean(1)
            for done in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    return PairedDifference(
        float(differences.mean()), float(low), float(high), gained, lost, mcnemar_p_value(gained, lost)
    )


def mcnemar_p_value(gained: int, lost: int) -> float:
    """Two-sided exact McNemar test: how likely a split at least as uneven is if gains and losses are equally likely."""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / (1 << changed))

"""Paired comparison of checkpoints."""

from __future__ import annotations

import math
import random

import pytest

from lance_dagster.evaluation.significance import mcnemar_p_value, paired_difference


def test_the_value_is_the_difference_of_the_means_and_gains_and_losses_are_counted() -> None:
    found = paired_difference([1, 1, 1, 0, 0], [0, 1, 0, 0, 1])
    assert math.isclose(found.value, 0.2)
    assert (found.gained, found.lost) == (2, 1)
    assert found.low <= found.value <= found.high
    assert not found.beyond_noise


def test_equal_checkpoints_do_not_differ() -> None:
    found = paired_difference([1, 0, 1], [1, 0, 1])
    assert (found.value, found.low, found.high, found.p_value, found.beyond_noise) == (0.0, 0.0, 0.0, 1.0, False)


@pytest.mark.parametrize(
    ("gained", "lost", "expected"), [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 2**10), (8, 2, 2 * 56 / 2**10), (1, 0, 1.0)]
)
def test_mcnemar_is_exact(gained: int, lost: int, expected: float) -> None:
    assert math.isclose(mcnemar_p_value(gained, lost), min(1.0, expected))
    assert mcnemar_p_value(gained, lost) == mcnemar_p_value(lost, gained)


def test_the_interval_covers_the_true_difference_about_95_times_in_100() -> None:
    rng = random.Random(0)
    covered = 0
    for trial in range(200):
        b = [float(rng.random() < 0.5) for _ in range(300)]
        a = [1.0 if rng.random() < 0.1 else value for value in b]  # a true gain of 5 points
        found = paired_difference(a, b, resamples=400, seed=trial)
        covered += found.low <= 0.05 <= found.high
    assert 178 <= covered <= 199


def test_the_result_repeats_itself_and_memory_is_bounded_for_many_items() -> None:
    items = [float(i % 3 == 0) for i in range(30_000)]
    other = [float(i % 4 == 0) for i in range(30_000)]
    first, second = (paired_difference(items, other, resamples=1000) for _ in range(2))
    assert first == second
    assert first.beyond_noise


def test_checkpoints_that_answered_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_difference([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="at least one"):
        paired_difference([], [])

from typing import Any

import pytest

from lance_dagster.report.funnel import Count, Funnel
from lance_dagster_tests.report.tables import candidate, evolution, pair, seed, sft_row

SEEDS = [
    seed(8.0, [8.0, 8.0, None], "preference"),
    seed(4.0, [5.0, 3.0, 4.0], "instruction"),
    seed(None, [None, None, None], "none"),
    seed(3.0, [3.0, None, 3.0], "instruction"),
]
LEDGER = [
    candidate("instruction"),
    candidate("instruction", "similar_instruction"),
    candidate("response", score=9.0),
    candidate("response", score=10.0),
    candidate("response", "low_reward", score=5.0),
    candidate("response", "low_reward", score=6.0),
    candidate("response", "truncated"),
    candidate("flawed_response", "small_gap", score=7.0),
]


def funnel_of(**parts: Any) -> Funnel:
    return evolution(last=(0.6,), **parts).funnels[0]


def test_seeds_are_counted_by_branch_and_unparsed_reviews_are_missing_not_zero() -> None:
    funnel = funnel_of(seeds=SEEDS)
    assert (funnel.seeds, funnel.reviews, funnel.reviews_parsed) == (4, 12, 7)
    assert funnel.reviews_parsed_share == pytest.approx(7 / 12)
    assert funnel.branches == (Count("instruction", 2), Count("preference", 1), Count("none", 1))
    assert funnel.mean_seed_score == pytest.approx(5.0)


def test_every_drop_reason_is_counted_and_the_numbers_add_up() -> None:
    instruction, response, flawed = funnel_of(ledger=LEDGER).kinds
    assert (instruction.generated, instruction.kept, instruction.dropped) == (2, 1, (Count("similar_instruction", 1),))
    assert (response.generated, response.kept) == (5, 2)
    assert response.dropped == (Count("low_reward", 2), Count("truncated", 1))
    assert (flawed.generated, flawed.kept, flawed.dropped) == (1, 0, (Count("small_gap", 1),))


def test_new_rows_are_told_from_those_of_earlier_iterations_and_of_the_seed() -> None:
    second = evolution(
        last=(0.6, 0.6), sft=[sft_row(-1), sft_row(0), sft_row(1, 1), sft_row(1, 2)], pairs=[pair(0), pair(1)]
    ).funnels[1]
    assert (second.sft_rows_new, second.sft_rows) == (2, 4)
    assert (second.pairs_new, second.pairs) == (1, 2)


def test_the_mean_reward_is_that_of_kept_responses_only() -> None:
    assert funnel_of(ledger=LEDGER).mean_kept_reward == pytest.approx(9.5)


def test_an_iteration_that_kept_nothing_has_no_mean_reward() -> None:
    funnel = funnel_of(ledger=[candidate("response", "low_reward", score=5.0)])
    assert funnel.mean_kept_reward is None
    assert funnel.sft_rows == 0


def test_an_iteration_without_seeds_or_candidates_counts_zero() -> None:
    funnel = funnel_of()
    assert (funnel.seeds, funnel.reviews_parsed_share, funnel.mean_seed_score) == (0, None, None)
    assert [(kind.generated, kind.kept, kind.dropped) for kind in funnel.kinds] == [(0, 0, ())] * 3


@pytest.mark.parametrize(
    "row",
    [
        candidate("flawed_response", None, kept=False),
        candidate("flawed_response", "small_gap", kept=True),
    ],
    ids=["neither kept nor dropped", "both"],
)
def test_a_ledger_that_does_not_add_up_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="iteration 000, kind flawed_response: 2 generated"):
        funnel_of(ledger=[candidate("flawed_response"), row])


def test_an_unknown_kind_or_branch_cannot_fall_out_of_the_count() -> None:
    with pytest.raises(ValueError, match="unknown kind riddle"):
        funnel_of(ledger=[candidate("riddle")])
    with pytest.raises(ValueError, match="unknown branch left"):
        funnel_of(seeds=[seed(8.0, [8.0], "left")])

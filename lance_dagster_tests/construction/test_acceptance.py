from collections import Counter
from pathlib import Path

import pytest

from lance_dagster_tests.construction.scripted import (
    FLAWED,
    HIGH,
    INSTRUCTION,
    LOW,
    RESPONSE,
    bench,
    fates,
    of_kind,
    seed,
    unlike,
)


def test_sft_rows_need_more_than_the_acceptance_score(tmp_path: Path) -> None:
    rows = bench(
        tmp_path, responses=["One, worth 8", "Two, worth 8|8|9", "Three, worth 8.1", "Four, worth 10|7|none"]
    ).ledger(LOW)
    assert fates(rows, RESPONSE) == ["below_acceptance", None, None, None]


def test_acceptance_at_exactly_the_score_is_not_decided_by_rounding(tmp_path: Path) -> None:
    for score in ("0.7", "3.3", "7.1"):
        rows = bench(
            tmp_path / score, responses=[f"One, worth {score}"], construction={"accept_above": float(score)}
        ).ledger(LOW)
        assert fates(rows, RESPONSE)[0] == "below_acceptance", score


@pytest.mark.parametrize(("worth", "expected"), [("6|6|6", None), ("6|6|7", "no_preference_gap")])
def test_a_gap_of_exactly_two_is_no_gap_even_in_thirds(tmp_path: Path, worth: str, expected: str | None) -> None:
    """25/3 - 19/3 is 2.000000000000001 in floating point."""
    rows = bench(tmp_path, flawed=[f"Not so. worth {worth}"], construction={"samples": 1}).ledger(seed("fire", "8|8|9"))
    assert fates(rows, FLAWED) == [expected]


def test_a_flawed_response_that_outscores_the_original_is_kept(tmp_path: Path) -> None:
    (row,) = bench(tmp_path, flawed=["Better, worth 10"], construction={"samples": 1}).ledger(seed("fire", "7"))
    assert row["kept"]
    assert (row["original_score"], row["score"]) == (7.0, 10.0)


def test_a_flawed_response_as_good_as_the_original_forms_no_pair(tmp_path: Path) -> None:
    rows = bench(tmp_path, flawed=["Just as good, worth 9", "Not so. worth 1"]).ledger(HIGH)
    good, bad = of_kind(rows, FLAWED)
    assert (good["drop_reason"], bad["drop_reason"]) == (None, None), "both it and the original beat the worst one"
    rows = bench(tmp_path / "alone", flawed=["Just as good, worth 9"], construction={"samples": 1}).ledger(HIGH)
    assert fates(rows, FLAWED) == ["no_preference_gap"]


def test_of_equally_bad_flawed_responses_the_first_is_the_rejected_one(tmp_path: Path) -> None:
    rows = bench(tmp_path, flawed=["Not so. worth 1", "Nor that. worth 1"]).ledger(HIGH)
    assert fates(rows, FLAWED) == [None, "no_preference_gap"]


def test_a_flawed_response_without_a_review_is_dropped_and_is_not_the_worst(tmp_path: Path) -> None:
    rows = bench(
        tmp_path, flawed=["Unread, worth none", "Not so. worth cut", "Bad. worth 1"], construction={"samples": 3}
    ).ledger(HIGH)
    assert fates(rows, FLAWED) == ["no_review", "no_review", None]
    assert [row["score"] for row in rows] == [None, None, 1.0]
    assert rows[0]["scores"] == [None, None, None]


# Caps


def test_the_seed_cap_keeps_the_best_responses_of_each_seed(tmp_path: Path) -> None:
    worths = ["8.5", "9.5", "9", "10"]
    rows = bench(
        tmp_path,
        responses=[f"{unlike(i)} worth {worths[i % 4]}" for i in range(8)],
        construction={"max_rows_per_seed": 2},
    ).ledger(LOW, seed("sea", "2"))
    assert fates(rows, RESPONSE) == ["over_seed_cap", None, "over_seed_cap", None] * 2


def test_the_iteration_cap_keeps_the_best_responses_and_the_earlier_of_equals(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        responses=[f"{unlike(i)} worth {worth}" for i, worth in enumerate(["9", "8.5", "9", "9"])],
        construction={"max_rows_per_iteration": 2},
    ).ledger(LOW)
    assert fates(rows, RESPONSE) == [None, "over_iteration_cap", None, "over_iteration_cap"]


def test_rows_over_the_seed_cap_leave_room_under_the_iteration_cap(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        responses=[f"{unlike(i)} worth {10 if i < 4 else 9}" for i in range(8)],
        construction={"max_rows_per_seed": 1, "max_rows_per_iteration": 2},
    ).ledger(LOW, seed("sea", "2"))
    assert [i for i, fate in enumerate(fates(rows, RESPONSE)) if fate is None] == [0, 4]


def test_the_cap_on_flawed_responses_keeps_the_largest_differences(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        flawed=["One. worth 5", "Two. worth 1", "Three. worth 4"],
        construction={"samples": 3, "max_rows_per_seed": 1},
    ).ledger(HIGH)
    assert fates(rows, FLAWED) == ["over_seed_cap", None, "over_seed_cap"]
    assert {row["stage"] for row in rows} == {"acceptance"}


def test_the_caps_count_each_kind_by_itself(tmp_path: Path) -> None:
    rows = bench(tmp_path, flawed=["One. worth 1", "Two. worth 2"], construction={"max_rows_per_iteration": 1}).ledger(
        LOW, HIGH
    )
    kept = Counter(row["kind"] for row in rows if row["kept"])
    assert kept == {INSTRUCTION: 2, RESPONSE: 1, FLAWED: 1}

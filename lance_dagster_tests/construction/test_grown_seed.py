"""Seed_t: what an iteration starts from."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lance_dagster.construction.assemble import (
    grown_seed,
    preference_set,
    sft_set,
)
from lance_dagster.construction.review import review_seed
from lance_dagster_tests.construction.scripted import HIGH, LOW, NO_REVIEWS, bench, seed, seed_instructions


def iterations(folder: Path, count: int, accumulate: bool = True) -> list[dict[str, pa.Table]]:
    """Some iterations on LOW and HIGH: their reviewed seed, SFT set and preference set."""
    made: list[dict[str, pa.Table]] = []
    for t in range(count):
        step = bench(folder, iteration=t, flawed=[f"Wrong {t}, worth 1"], training={"accumulate": accumulate})
        earlier = made[-1] if made else {}
        grown = grown_seed(
            t, seed_instructions(LOW, HIGH), "merge", None, sft=earlier.get("sft"), reviewed=earlier.get("reviewed")
        )
        _, ledger = step.tables(LOW, HIGH)
        reviewed = review_seed(step.context, grown)
        made.append(
            {
                "reviewed": reviewed,
                "ledger": ledger,
                "sft": sft_set(step.context, ledger, reviewed, NO_REVIEWS, earlier.get("sft")),
                "preferences": preference_set(step.context, ledger, reviewed, earlier.get("preferences")),
            }
        )
    return made


def written_in(tables: dict[str, pa.Table], *wanted: int) -> set[str]:
    return {row["response"] for row in tables["sft"].to_pylist() if row["iteration"] in wanted}


def test_the_original_seed_does_not_grow(tmp_path: Path) -> None:
    (tables,) = iterations(tmp_path, 1)
    rows = grown_seed(1, seed_instructions(LOW, HIGH), "original", None, sft=tables["sft"])
    assert rows == [LOW, HIGH]


@pytest.mark.parametrize("growth", ["original", "merge", "merge_latest"])
def test_the_first_iteration_starts_from_seed_0(growth: Any) -> None:
    assert grown_seed(0, seed_instructions(LOW, HIGH), growth, None) == [LOW, HIGH]


@pytest.mark.parametrize("accumulate", [True, False])
def test_merge_adds_all_accepted_rows_so_far_the_newest_first(tmp_path: Path, accumulate: bool) -> None:
    made = iterations(tmp_path, 2, accumulate)
    everything = written_in(made[0], 0) | written_in(made[1], 1)
    assert len(everything) == 8
    tables = {"sft": made[1]["sft"], "reviewed": made[1]["reviewed"]}
    rows = grown_seed(2, seed_instructions(LOW, HIGH), "merge", None, **tables)
    assert rows[:2] == [LOW, HIGH]
    assert {row["response"] for row in rows[2:6]} == written_in(made[1], 1)
    assert {row["response"] for row in rows[6:]} == written_in(made[0], 0)
    assert len({row["seed_id"] for row in rows}) == len(rows) == 10


def test_a_grown_seed_names_the_row_that_it_was(tmp_path: Path) -> None:
    (tables,) = iterations(tmp_path, 1)
    by_text = {row["response"]: row["row_id"] for row in tables["ledger"].to_pylist()}
    rows = grown_seed(1, seed_instructions(LOW, HIGH), "merge", None, sft=tables["sft"])
    assert all(row["parent_ids"] == [by_text[row["response"]]] and row["origin"] == "generated" for row in rows[2:])


def test_merge_latest_adds_the_rows_of_the_last_iteration_only(tmp_path: Path) -> None:
    made = iterations(tmp_path, 2)
    rows = grown_seed(2, seed_instructions(LOW, HIGH), "merge_latest", None, sft=made[1]["sft"])
    assert {row["response"] for row in rows[2:]} == written_in(made[1], 1)


def test_merge_latest_adds_nothing_where_the_last_iteration_accepted_nothing(tmp_path: Path) -> None:
    (tables,) = iterations(tmp_path, 1)
    assert grown_seed(2, seed_instructions(LOW, HIGH), "merge_latest", None, sft=tables["sft"]) == [LOW, HIGH]


@pytest.mark.parametrize("growth", ["merge", "merge_latest"])
def test_rejected_flawed_rows_reenter_where_they_are_given(tmp_path: Path, growth: Any) -> None:
    (tables,) = iterations(tmp_path, 1)
    rejected = {row["row_id"]: row for row in tables["ledger"].to_pylist() if row["response"] == "Wrong 0, worth 1"}
    without = grown_seed(1, seed_instructions(LOW, HIGH), growth, None, sft=tables["sft"])
    rows = grown_seed(
        1, seed_instructions(LOW, HIGH), growth, None, sft=tables["sft"], preferences=tables["preferences"]
    )
    (added,) = [row for row in rows if row not in without]
    assert (added["instruction"], added["response"]) == (HIGH["instruction"], "Wrong 0, worth 1")
    assert added["parent_ids"] == list(rejected)


def test_an_original_that_lost_against_a_flawed_row_does_not_enter_twice(tmp_path: Path) -> None:
    original = seed("fire", "7", origin="generated")
    made = bench(tmp_path, flawed=["Better, worth 10"], construction={"samples": 1})
    reviewed, ledger = made.tables(original)
    pairs = preference_set(made.context, ledger, reviewed, None)
    assert pairs["rejected"].to_pylist() == [original["response"]]
    assert grown_seed(1, seed_instructions(LOW), "merge", None, preferences=pairs) == [LOW]


def test_the_cap_keeps_seed_0_first_and_then_the_newest_rows(tmp_path: Path) -> None:
    made = iterations(tmp_path, 2)
    tables = {"sft": made[1]["sft"], "reviewed": made[1]["reviewed"]}
    capped = grown_seed(2, seed_instructions(LOW, HIGH), "merge", 5, **tables)
    assert capped[:2] == [LOW, HIGH]
    assert {row["response"] for row in capped[2:]} < written_in(made[1], 1)
    assert grown_seed(2, seed_instructions(LOW, HIGH), "merge", 1, **tables) == [LOW]
    assert grown_seed(0, seed_instructions(LOW, HIGH), "original", 1) == [LOW]

"""Controls and variants as settings: everything accepted, own responses as pairs, stages left out, replay."""

from __future__ import annotations

from pathlib import Path

import pytest

from lance_dagster.construction.assemble import preference_set, sft_set
from lance_dagster.construction.filters.contamination import EvaluationIndex
from lance_dagster.methods.registry import method_named
from lance_dagster.records import CANDIDATE_LEDGER, CANDIDATES, PREFERENCE_SET, SEED_REVIEWS, table_of
from lance_dagster_tests.construction.scripted import HIGH, LOW, bench

NO_REVIEWS = table_of([], SEED_REVIEWS)


def test_without_rewards_every_response_that_passes_the_filters_is_accepted(tmp_path: Path) -> None:
    made = bench(
        tmp_path,
        instructions=["Tell me more of ice and of snow."],
        responses=["It is cold, worth 1", "Who knows, worth none", "Fine, worth 10"],
        construction={"samples": 1, "responses_per_instruction": 3, "acceptance": "all"},
    )
    reviewed, ledger = made.tables(LOW)
    rows = sft_set(made.context, ledger, reviewed, NO_REVIEWS, None)
    assert rows["response"].to_pylist() == ["It is cold, worth 1", "Who knows, worth none", "Fine, worth 10"]
    assert rows["score"].to_pylist() == [1.0, None, 10.0]


def test_without_rewards_the_original_is_preferred_to_every_flawed_response(tmp_path: Path) -> None:
    made = bench(
        tmp_path,
        flawed=["Better, worth 10", "Hm, worth none"],
        construction={"samples": 2, "acceptance": "all"},
    )
    reviewed, ledger = made.tables(HIGH)
    pairs = preference_set(made.context, ledger, reviewed, None).to_pylist()
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [
        (HIGH["response"], "Better, worth 10"),
        (HIGH["response"], "Hm, worth none"),
    ]
    assert [row["rejected_score"] for row in pairs] == [10.0, None]


def test_own_responses_pair_the_best_with_the_worst_of_each_new_instruction(tmp_path: Path) -> None:
    made = bench(
        tmp_path,
        instructions=["Tell me more of ice and of snow.", "Explain glaciers to a child of five."],
        responses=["A, worth 9", "B, worth 1", "C, worth 10", "D, worth 5", "E, worth 6", "F, worth 4"],
        construction={"samples": 2, "responses_per_instruction": 3, "pairs": "own_responses"},
    )
    reviewed, ledger = made.tables(LOW)
    pairs = preference_set(made.context, ledger, reviewed, None).to_pylist()
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in pairs] == [
        ("Tell me more of ice and of snow.", "C, worth 10", "B, worth 1")
    ], "the second instruction's responses are 6 and 4: a gap of 2 is not above 2"
    ids = {row["row_id"]: row for row in ledger.to_pylist()}
    assert [ids[parent]["response"] for parent in pairs[0]["parent_ids"]] == ["C, worth 10", "B, worth 1"]


def test_without_rewards_own_responses_are_paired_in_the_order_they_came(tmp_path: Path) -> None:
    made = bench(
        tmp_path,
        instructions=["Tell me more of ice and of snow."],
        responses=["A, worth 1", "B, worth none", "C, worth 10"],
        construction={
            "samples": 1,
            "responses_per_instruction": 3,
            "pairs": "own_responses",
            "acceptance": "all",
        },
    )
    reviewed, ledger = made.tables(LOW)
    pairs = preference_set(made.context, ledger, reviewed, None).to_pylist()
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [("A, worth 1", "C, worth 10")]


@pytest.mark.parametrize(
    ("training", "construction", "instructions", "flawed"),
    [
        ({"stages": ["sft", "dpo"]}, {}, True, True),
        ({"stages": ["sft"]}, {}, True, False),
        ({"stages": ["dpo"]}, {}, False, True),
        ({"stages": ["dpo"]}, {"pairs": "own_responses"}, True, False),
        ({"stages": ["sft", "dpo"]}, {"pairs": "own_responses"}, True, False),
    ],
)
def test_what_no_stage_trains_on_is_not_generated(
    tmp_path: Path, training: dict[str, object], construction: dict[str, object], instructions: bool, flawed: bool
) -> None:
    made = bench(tmp_path, training=training, construction=construction)
    reviewed = made.review(LOW, HIGH)
    method = method_named("lance")
    assert bool(method.instruction_candidates(made.context, reviewed).num_rows) == instructions
    assert bool(method.preference_candidates(made.context, reviewed).num_rows) == flawed


def test_replay_generates_nothing_and_trains_on_real_rows(tmp_path: Path) -> None:
    made = bench(tmp_path, training={"replay_seed": "all"})
    reviewed, method = made.review(LOW, HIGH), method_named("replay")
    reviews = len(made.engine.requests)
    candidates = method.instruction_candidates(made.context, reviewed)
    flawed = method.preference_candidates(made.context, reviewed)
    policy, store = object(), object()  # replay reads no earlier iteration's pairs
    ledger, hits, _ = method.candidate_ledger(
        made.context,
        policy,
        store,
        candidates,
        flawed,
        reviewed,
        EvaluationIndex(),  # type: ignore[arg-type]
    )
    assert len(made.engine.requests) == reviews
    assert candidates.equals(CANDIDATES.empty_table())
    assert flawed.equals(CANDIDATES.empty_table())
    assert ledger.equals(CANDIDATE_LEDGER.empty_table())
    assert hits.num_rows == 0
    pairs = method.preference_set(made.context, policy, store, ledger, reviewed)  # type: ignore[arg-type]
    assert pairs.equals(PREFERENCE_SET.empty_table())
    rows = sft_set(made.context, ledger, reviewed, NO_REVIEWS, None)
    assert rows["response"].to_pylist() == [LOW["response"], HIGH["response"]]

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lance_dagster.construction.assemble import (
    Candidate,
    PairRule,
    initial_set,
    preference_pairs,
    preference_set,
    sft_set,
)
from lance_dagster.errors import ArtifactError
from lance_dagster.prompts.parsing import parse_rationale, parse_score
from lance_dagster.prompts.prompt_sets import load_prompt_set
from lance_dagster.records import (
    CANDIDATE_LEDGER,
    PREFERENCE_SET,
    SEED_REVIEWS,
    SFT_SET,
    row_id,
    table_of,
)
from lance_dagster_tests.construction.scripted import (
    HIGH,
    LOW,
    NO_REVIEWS,
    PROMPT_SETS,
    Bench,
    Row,
    bench,
    seed,
    seed_instructions,
)

EXACT = seed("fog", "7")


def seed_reviews(*scores: float) -> pa.Table:
    return table_of(
        [
            {
                "seed_id": row_id("review", i),
                "instruction": f"Question {i}?",
                "response": f"Answer {i}.",
                "rationale": f"Because of {i}.",
                "score": score,
                "source": "s",
                "position": i,
            }
            for i, score in enumerate(scores)
        ],
        SEED_REVIEWS,
    )


def sft_of(made: Bench, *seeds: Row, earlier: pa.Table | None = None, reviews: pa.Table = NO_REVIEWS) -> pa.Table:
    reviewed, ledger = made.tables(*seeds)
    return sft_set(made.context, ledger, reviewed, reviews, earlier)


def pairs_of(made: Bench, *seeds: Row, earlier: pa.Table | None = None) -> pa.Table:
    reviewed, ledger = made.tables(*seeds)
    return preference_set(made.context, ledger, reviewed, earlier)


def texts(table: pa.Table, *columns: str) -> list[Any]:
    rows = [tuple(row[name] for name in columns) for row in table.to_pylist()]
    return [row[0] for row in rows] if len(columns) == 1 else rows


# Pairs


def candidates(*scores: float) -> list[Candidate]:
    return [Candidate(f"row {i}", f"text {i}", score) for i, score in enumerate(scores)]


def paired(*scores: float, gap: float = 2.0) -> list[tuple[str, str]]:
    return [
        (pair.chosen.row_id, pair.rejected.row_id)
        for pair in preference_pairs(None, candidates(*scores), PairRule(gap))
    ]


def test_the_lowest_is_always_rejected_and_all_that_exceed_it_by_the_gap_are_chosen_best_first() -> None:
    assert paired(9, 1, 5, 10, 2.5) == [("row 3", "row 1"), ("row 0", "row 1"), ("row 2", "row 1")]


def test_the_gap_is_strict() -> None:
    assert paired(9, 7) == []
    assert paired(9, 6.99) == [("row 0", "row 1")]
    assert paired(25 / 3, 19 / 3) == []
    assert paired(5, 5, gap=0) == []
    assert paired(5.1, 5, gap=0) == [("row 0", "row 1")]


def test_the_first_of_equally_low_candidates_is_rejected() -> None:
    assert paired(1, 9, 1) == [("row 1", "row 0")]


@pytest.mark.parametrize("scores", [(), (9,)])
def test_fewer_than_two_candidates_form_no_pair(scores: Sequence[float]) -> None:
    assert paired(*scores) == []


def test_in_every_pair_the_chosen_reward_is_higher_whatever_the_scores() -> None:
    rng = random.Random(0)
    for _ in range(300):
        group = candidates(*(rng.randrange(31) / 3 for _ in range(rng.randrange(1, 7))))
        gap = rng.choice([0.0, 0.5, 2.0])
        pairs = preference_pairs(None, group, PairRule(gap))
        assert len({pair.rejected for pair in pairs}) <= 1
        assert len({pair.chosen for pair in pairs}) == len(pairs) < len(group)
        assert all(pair.rejected.score == min(c.score for c in group) for pair in pairs)
        assert all(round(3 * (pair.chosen.score - pair.rejected.score)) > 3 * gap for pair in pairs)


ORIGINAL = Candidate("original", "text", 7.0)


@pytest.mark.parametrize(
    ("rule", "scores", "expected"),
    [
        (PairRule(2.0), (9.5, 4.0), [("a", "b"), ("original", "b")]),
        (PairRule(2.0, per_prompt="best"), (9.5, 4.0), [("a", "b")]),
        (PairRule(2.0, original=False), (9.5, 4.0), [("a", "b")]),
        (PairRule(2.0, direction="construction"), (9.5, 4.0, 1.0), [("original", "c"), ("original", "b")]),
        (PairRule(2.0, direction="construction", per_prompt="best"), (4.0, 1.0), [("original", "b")]),
        (PairRule(2.0), (5.0,), []),
        (PairRule(2.0, at_limit="accept"), (5.0,), [("original", "a")]),
        (PairRule(0.0, at_limit="accept"), (7.0,), []),
        (PairRule(2.0), (4.0, 4.0), [("original", "a")]),
        (PairRule(2.0, rejected_ties="last"), (4.0, 4.0), [("original", "b")]),
        (PairRule(2.0), (), []),
    ],
)
def test_the_switches_of_pairs(rule: PairRule, scores: tuple[float, ...], expected: list[tuple[str, str]]) -> None:
    others = [Candidate(name, "text", score) for name, score in zip("abc", scores, strict=False)]
    pairs = preference_pairs(ORIGINAL, others, rule)
    assert [(pair.chosen.row_id, pair.rejected.row_id) for pair in pairs] == expected


@pytest.mark.parametrize(
    "switches",
    [
        {"original_in_pairs": False},
        {"pair_direction": "construction"},
        {"pairs_per_prompt": "best"},
        {"rejected_ties": "last", "at_limit": "accept"},
    ],
)
def test_with_any_switch_a_flawed_row_is_kept_if_and_only_if_it_is_in_a_pair(
    tmp_path: Path, switches: dict[str, Any]
) -> None:
    worths = random.Random(3).choices(["0", "1", "3", "6", "7", "9", "10"], k=30)
    made = bench(
        tmp_path,
        flawed=[f"Text {i}, worth {w}" for i, w in enumerate(worths)],
        construction={"samples": 5, **switches},
    )
    reviewed, ledger = made.tables(*(seed(f"thing {i}", "8") for i in range(6)))
    pairs = preference_set(made.context, ledger, reviewed, None)
    parents = {parent for parents in texts(pairs, "parent_ids") for parent in parents}
    assert {row["row_id"] for row in ledger.to_pylist() if row["kept"]} == parents - set(
        reviewed["seed_id"].to_pylist()
    )


@pytest.mark.parametrize(("at_limit", "kept"), [("reject", [False, True]), ("accept", [True, True])])
def test_a_reward_equal_to_the_acceptance_score_is_enough_if_so_set(
    tmp_path: Path, at_limit: str, kept: list[bool]
) -> None:
    made = bench(
        tmp_path,
        responses=["It is, worth 8", "It is not, worth 9"],
        construction={"at_limit": at_limit, "samples": 1, "responses_per_instruction": 2},
    )
    _, ledger = made.tables(LOW)
    assert [row["kept"] for row in ledger.to_pylist() if row["kind"] == "response"] == kept


def test_a_score_needs_as_many_reviews_as_the_settings_say(tmp_path: Path) -> None:
    made = bench(
        tmp_path,
        responses=["One, worth 9|none|none", "Two, worth 9|9|none"],
        construction={"reviews_needed": 2, "samples": 1, "responses_per_instruction": 2},
    )
    _, ledger = made.tables(LOW)
    responses = [row for row in ledger.to_pylist() if row["kind"] == "response"]
    assert [(row["score"], row["drop_reason"]) for row in responses] == [(None, "no_review"), (9.0, None)]


# D^p


def test_k_flawed_responses_give_up_to_k_pairs_with_one_rejected_row(tmp_path: Path) -> None:
    made = bench(
        tmp_path,
        flawed=["A. worth 4", "B. worth 1", "C. worth 10", "D. worth 6"],
        construction={"samples": 4},
    )
    table = pairs_of(made, HIGH)
    assert texts(table, "chosen", "rejected") == [
        ("C. worth 10", "B. worth 1"),
        (HIGH["response"], "B. worth 1"),
        ("D. worth 6", "B. worth 1"),
        ("A. worth 4", "B. worth 1"),
    ]
    assert set(texts(table, "prompt")) == {HIGH["instruction"]}


def test_a_flawed_response_that_outscores_the_original_becomes_the_chosen_one(tmp_path: Path) -> None:
    original = seed("fire", "7")
    made = bench(tmp_path, flawed=["Better, worth 10"], construction={"samples": 1})
    (row,) = pairs_of(made, original).to_pylist()
    assert (row["chosen"], row["rejected"]) == ("Better, worth 10", original["response"])
    assert (row["chosen_score"], row["rejected_score"]) == (10.0, 7.0)
    assert row["parent_ids"][1] == row["seed_id"] == original["seed_id"]


def test_every_kept_flawed_row_is_in_a_pair_and_no_other_is(tmp_path: Path) -> None:
    worths = random.Random(1).choices(["0", "1", "3", "5|6|6", "9", "10", "none"], k=40)
    made = bench(tmp_path, flawed=[f"Text {i}, worth {w}" for i, w in enumerate(worths)], construction={"samples": 5})
    reviewed, ledger = made.tables(*(seed(f"thing {i}", "8|8|9") for i in range(8)))
    pairs = preference_set(made.context, ledger, reviewed, None)
    parents = {parent for parents in texts(pairs, "parent_ids") for parent in parents}
    kept = {row["row_id"] for row in ledger.to_pylist() if row["kept"]}
    assert kept == parents - set(reviewed["seed_id"].to_pylist())
    assert 0 < len(kept) < 40


@pytest.mark.parametrize("prompts", PROMPT_SETS)
@pytest.mark.parametrize("switch", [True, False])
def test_the_system_prompt_of_pairs_follows_the_switch(tmp_path: Path, prompts: str, switch: bool) -> None:
    made = bench(tmp_path, prompts, flawed=["No. worth 1"], prompts={"system_in_preferences": switch})
    expected = load_prompt_set(prompts).content.system if switch else None
    assert set(texts(pairs_of(made, HIGH), "system")) == {expected}


@pytest.mark.parametrize("accumulate", [True, False])
def test_pairs_of_earlier_iterations_stay_if_the_set_accumulates(tmp_path: Path, accumulate: bool) -> None:
    first = pairs_of(bench(tmp_path, flawed=["One. worth 1", "Two. worth 9"]), HIGH)
    later = bench(tmp_path, iteration=1, flawed=["Three. worth 2"], training={"accumulate": accumulate})
    second = pairs_of(later, HIGH, earlier=first)
    old, new = (0, "model_0", "One. worth 1"), (1, "model_1", "Three. worth 2")
    expected = [old, old, new, new] if accumulate else [new, new]
    assert texts(second, "iteration", "model_digest", "rejected") == expected


def test_a_pair_that_occurs_again_stays_once_with_its_first_iteration(tmp_path: Path) -> None:
    first = pairs_of(bench(tmp_path, flawed=["No. worth 1"], construction={"samples": 1}), HIGH)
    later = bench(tmp_path, iteration=1, flawed=["No. worth 1"], construction={"samples": 1})
    assert pairs_of(later, HIGH, earlier=first).equals(first)


def test_a_ledger_of_other_reviews_is_refused(tmp_path: Path) -> None:
    made = bench(tmp_path, flawed=["No. worth 1"])
    _, ledger = made.tables(HIGH)
    for reviewed in (made.review(LOW), made.review({**HIGH, "response": "fire, worth 10"})):
        with pytest.raises(ArtifactError, match=f"{HIGH['seed_id']}.*Re-materialise"):
            preference_set(made.context, ledger, reviewed, None)


# D^s


@pytest.mark.parametrize("prompts", PROMPT_SETS)
def test_the_sft_set_holds_the_kept_responses_with_the_system_prompt(tmp_path: Path, prompts: str) -> None:
    made = bench(
        tmp_path,
        prompts,
        instructions=["Name a river.", "Name a lake."],
        responses=["Po, worth 9", "A river, worth 2", "Garda, worth 10", "Lake, worth none"],
    )
    reviewed, ledger = made.tables(LOW, HIGH)
    table = sft_set(made.context, ledger, reviewed, NO_REVIEWS, None)
    assert texts(table, "prompt", "response", "score", "origin", "iteration") == [
        ("Name a river.", "Po, worth 9", 9.0, "generated", 0),
        ("Name a lake.", "Garda, worth 10", 10.0, "generated", 0),
    ]
    assert set(texts(table, "system")) == {load_prompt_set(prompts).content.system}
    kept = {row["row_id"] for row in ledger.to_pylist() if row["kept"] and row["kind"] == "response"}
    assert set(texts(table, "row_id")) == kept


@pytest.mark.parametrize("accumulate", [True, False])
def test_rows_of_earlier_iterations_stay_if_the_set_accumulates(tmp_path: Path, accumulate: bool) -> None:
    first = sft_of(bench(tmp_path), LOW)
    second = sft_of(bench(tmp_path, iteration=1, training={"accumulate": accumulate}), LOW, earlier=first)
    assert texts(first, "iteration") == [0] * 4
    assert texts(second, "iteration") == ([0] * 4 if accumulate else []) + [1] * 4
    third = sft_of(bench(tmp_path, iteration=2, training={"accumulate": accumulate}), LOW, earlier=second)
    assert texts(third, "iteration") == ([0] * 4 + [1] * 4 if accumulate else []) + [2] * 4


def test_a_row_that_is_written_again_stays_once_with_its_first_iteration(tmp_path: Path) -> None:
    script: dict[str, Any] = {
        "instructions": ["Name a river."],
        "responses": ["Po, worth 9"],
        "construction": {"samples": 1},
    }
    first = sft_of(bench(tmp_path, **script), LOW)
    assert sft_of(bench(tmp_path, iteration=1, **script), LOW, earlier=first).equals(first)


@pytest.mark.parametrize(
    ("which", "expected"), [("none", []), ("accepted", [HIGH, EXACT]), ("all", [LOW, HIGH, EXACT])]
)
def test_seed_rows_are_replayed_as_asked(tmp_path: Path, which: str, expected: list[Row]) -> None:
    grown = seed("sun", "9", origin="generated")
    made = bench(
        tmp_path,
        training={"replay_seed": which},
        construction={"branch_at_threshold": "instruction", "unreviewed_seeds": "instruction"},
    )
    unreviewed = seed("mist", "none")
    table = sft_of(made, LOW, HIGH, EXACT, grown, unreviewed)
    replayed = [row for row in table.to_pylist() if row["origin"] == "seed"]
    rows = [*expected, unreviewed] if which == "all" else expected
    assert [row["response"] for row in replayed] == [row["response"] for row in rows]
    assert {(row["iteration"], row["model_digest"]) for row in replayed} <= {(-1, None)}


def test_replayed_rows_take_the_place_of_those_of_the_iteration_before(tmp_path: Path) -> None:
    replay = {"replay_seed": "accepted", "replay_reviews": True}
    first = sft_of(bench(tmp_path, training=replay), HIGH, LOW, reviews=seed_reviews(9, 1))
    later = bench(tmp_path, iteration=1, training=replay)
    worse = {**HIGH, "response": "fire, worth 2"}
    second = sft_of(later, worse, LOW, earlier=first, reviews=seed_reviews(9))
    assert texts(first, "origin").count("seed") == 1
    assert texts(first, "origin").count("review") == 2
    assert texts(second, "origin").count("seed") == 0, "the seed is not accepted any more"
    assert texts(second, "origin").count("review") == 1


def test_of_a_seed_row_and_a_generated_row_with_the_same_texts_the_seed_row_stays(tmp_path: Path) -> None:
    made = bench(
        tmp_path, instructions=[HIGH["instruction"]], responses=[HIGH["response"]], training={"replay_seed": "all"}
    )
    same = [row for row in sft_of(made, LOW, HIGH).to_pylist() if row["response"] == HIGH["response"]]
    assert [(row["origin"], row["iteration"]) for row in same] == [("seed", -1)]


@pytest.mark.parametrize("prompts", PROMPT_SETS)
def test_replayed_reviews_teach_to_write_a_review_that_parses(tmp_path: Path, prompts: str) -> None:
    made = bench(tmp_path, prompts, training={"replay_reviews": True})
    table = sft_of(made, HIGH, reviews=seed_reviews(9, 2.5))
    reviews = [row for row in table.to_pylist() if row["origin"] == "review"]
    assert [parse_score(row["response"]) for row in reviews] == [9.0, 2.5]
    assert [parse_rationale(row["response"]) for row in reviews] == ["Because of 0.", "Because of 1."]
    for i, row in enumerate(reviews):
        assert f"Question {i}?" in row["prompt"]
        assert f"Answer {i}." in row["prompt"]
        assert made.script.kind_of(row["prompt"]) == "review"


def test_sets_of_nothing_are_empty_with_the_right_schema(tmp_path: Path) -> None:
    made = bench(tmp_path)
    empty, reviewed = table_of([], CANDIDATE_LEDGER), made.review()
    sft = sft_set(made.context, empty, reviewed, NO_REVIEWS, None)
    pairs = preference_set(made.context, empty, reviewed, None)
    assert sft.schema.equals(SFT_SET)
    assert pairs.schema.equals(PREFERENCE_SET)
    assert sft.num_rows == pairs.num_rows == 0


@pytest.mark.parametrize("prompts", PROMPT_SETS)
def test_the_initial_set_holds_both_parts_of_the_seed(tmp_path: Path, prompts: str) -> None:
    table = initial_set(bench(tmp_path, prompts).context, seed_instructions(LOW, HIGH), seed_reviews(9, 1))
    assert texts(table, "origin") == ["seed", "seed", "review", "review"]
    assert texts(table, "response")[:2] == [LOW["response"], HIGH["response"]]
    assert [parse_score(response) for response in texts(table, "response")[2:]] == [9.0, 1.0]
    assert len(set(texts(table, "row_id"))) == 4
    assert set(texts(table, "system")) == {load_prompt_set(prompts).content.system}

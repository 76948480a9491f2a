"""Measures against the world's oracle, on models whose quality is known because it is scripted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pyarrow as pa

from lance_dagster.engines.engine import Completion, GenerationRequest
from lance_dagster.mini.measure import (
    measure_answering,
    measure_reviewing,
    order_of_pairs,
    precision_of_ledger,
    reviewer_auc,
    reviews_of_table,
)
from lance_dagster.mini.world import world_named
from lance_dagster.prompts.prompt_sets import load_prompt_set
from lance_dagster.settings import SamplingSettings

WORLD, PROMPTS = world_named("discovery"), load_prompt_set("mini_v1")
SAMPLED, GREEDY = SamplingSettings(temperature=1.0, max_new_tokens=96), SamplingSettings(temperature=0.0)
RIGHT, WRONG = ("What number plus 38 makes 81?", "43"), ("What number plus 38 makes 81?", "44")


class Answers:
    """An engine that answers by a function of the prompt and the request."""

    model_digest = identity = "scripted"

    def __init__(self, answer: Callable[[str, GenerationRequest], str]) -> None:
        self.answer = answer

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        return [Completion(self.answer(r.messages[-1]["content"], r), "stop", 1, 1) for r in requests]


def right_every_fourth_time(prompt: str, request: GenerationRequest) -> str:
    item = WORLD.read(prompt)
    assert item is not None
    return item.answer if request.sampling.temperature > 0 and request.seed % 4 == 0 else "no idea"


def test_pass_at_k_counts_items_and_pass_at_1_counts_samples() -> None:
    found = measure_answering(Answers(right_every_fourth_time), PROMPTS, WORLD, SAMPLED, k=8, per_family=4)
    assert (found.items, found.k) == (16, 8)
    assert (found.greedy, found.pass_at_1, found.pass_at_k) == (0.0, 0.25, 1.0)
    alone = measure_answering(Answers(right_every_fourth_time), PROMPTS, WORLD, SAMPLED, k=1, per_family=4)
    assert alone.pass_at_k == alone.pass_at_1 == 0.25


def test_measured_items_are_of_the_test_split() -> None:
    asked: set[str] = set()

    def note(prompt: str, _: GenerationRequest) -> str:
        asked.add(prompt)
        return ""

    measure_answering(Answers(note), PROMPTS, WORLD, SAMPLED, k=1, per_family=5)
    items = [WORLD.read(prompt) for prompt in asked]
    assert all(item is not None and item.split == "test" for item in items)


def test_a_perfect_reviewer_has_an_auc_of_one_and_a_guessing_one_of_a_half() -> None:
    def perfect(prompt: str, _: GenerationRequest) -> str:
        instruction, _, response = prompt.partition("Instruction: ")[2].partition("\nResponse: ")
        review = WORLD.review(instruction, response)
        return PROMPTS.review_target(review.rationale, review.score)

    found = measure_reviewing(Answers(perfect), PROMPTS, WORLD, GREEDY, per_family=20)
    assert (found.reviews, found.auc, found.parsed) == (80, 1.0, 1.0)
    same = measure_reviewing(Answers(lambda *_: "Fine. Score: 5"), PROMPTS, WORLD, GREEDY, per_family=20)
    assert same.auc == 0.5
    rng = random.Random(0)
    mute = Answers(lambda *_: "Score: 5" if rng.random() < 0.5 else "I cannot say.")
    assert 0.3 < measure_reviewing(mute, PROMPTS, WORLD, GREEDY, per_family=20).parsed < 0.7


def test_a_review_that_does_not_parse_is_left_out_and_not_zero() -> None:
    assert reviewer_auc([9.0, None, 1.0], [True, True, False]) == 1.0
    assert reviewer_auc([9.0, 8.0], [True, True]) is None
    assert reviewer_auc([None, None], [True, False]) is None


def test_rewards_in_a_table_are_held_against_the_oracle() -> None:
    rows = [(*RIGHT, [9.0]), (*WRONG, [1.0]), (*WRONG, [None]), (*RIGHT, []), ("What is love?", "43", [9.0])]
    table = pa.table(
        {
            "instruction": [row[0] for row in rows],
            "response": [row[1] for row in rows],
            "scores": pa.array([row[2] for row in rows], pa.list_(pa.float64())),
            "score": [row[2][0] if row[2] else None for row in rows],
        }
    )
    found = reviews_of_table(table, WORLD)
    assert (found.reviews, found.parsed) == (4, 0.75)
    assert found.auc == 0.75, "a question without an answer that is scored 9 ties with the right one"


def test_precision_counts_what_was_kept_among_what_was_generated() -> None:
    ledger = pa.table(
        {
            "kind": ["instruction", "response", "response", "response", "flawed_response"],
            "instruction": [RIGHT[0]] * 5,
            "response": [None, "43", "44", "45", "43"],
            "kept": [True, True, True, False, True],
        }
    )
    found = precision_of_ledger(ledger, WORLD)
    assert (found.generated, found.kept, found.kept_rows) == (1 / 3, 0.5, 2)
    empty = precision_of_ledger(ledger.slice(0, 1), WORLD)
    assert (empty.generated, empty.kept, empty.kept_rows) == (None, None, 0)


def test_pairs_are_in_order_where_only_the_chosen_one_is_right() -> None:
    pairs = [("43", "44"), ("44", "43"), ("44", "45"), ("43", "43")]
    table = pa.table(
        {"prompt": [RIGHT[0]] * 4, "chosen": [pair[0] for pair in pairs], "rejected": [pair[1] for pair in pairs]}
    )
    found = order_of_pairs(table, WORLD)
    assert (found.pairs, found.right, found.reversed) == (4, 0.25, 0.25)

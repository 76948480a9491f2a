"""Families that are easier to check than to find: the oracle, the splits, and reviews that show their calculation."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lance_dagster.mini.discovery_families import DISCOVERY_FAMILIES
from lance_dagster.mini.documents import answer_pools, pretraining_documents
from lance_dagster.mini.families import Family
from lance_dagster.mini.pretraining import RECIPES
from lance_dagster.mini.world import Item, world_named
from lance_dagster.prompts.prompt_sets import load_prompt_set
from lance_dagster_tests.tiny import REPOSITORY

WORLD = world_named("discovery")
every_family = pytest.mark.parametrize("family", DISCOVERY_FAMILIES, ids=lambda family: family.name)


def items(family: Family, count: int = 400) -> Iterator[Item]:
    rng = random.Random(family.name)
    for _ in range(count):
        yield Item(family, family.draw(rng), rng.randrange(len(family.phrasings)))


@every_family
def test_an_instruction_reads_back_as_what_it_was_made_from(family: Family) -> None:
    for item in items(family):
        assert WORLD.read(item.instruction) == item


@every_family
def test_found_answers_are_right_and_wrong_ones_are_not(family: Family) -> None:
    rng = random.Random(1)
    for item in items(family):
        assert item.is_right(item.answer)
        assert item.is_right(f" {item.right(rng)}\n")
        for systematic in (None, True, False):
            assert not item.is_right(family.wrong(item.payload, rng, systematic))


@pytest.mark.parametrize(
    ("instruction", "right", "wrong"),
    [
        ("What number plus 38 makes 81?", ["43"], ["42", "119", "043", "43 ", "", "four"]),
        (
            "Find two numbers that bring 14 up to 39.",
            ["12 and 13", "24 and 1", "0 and 25"],
            ["12 and 14", "12, 13", "12 13", "25", "12 and 13 and 0"],
        ),
        (
            "Name four digits with the sum 17, the first 3 and the largest 6.",
            ["3 6 6 2", "3 2 6 6", "3 6 5 3"],
            ["6 3 6 2", "3 6 6 3", "3 5 5 4", "3662", "3 6 8", "3 and 6 and 6 and 2"],
        ),
        ("Solve 3 * x + 4 = 19.", ["5"], ["4", "15", "x = 5"]),
    ],
)
def test_the_oracle_accepts_every_right_answer_and_no_other(
    instruction: str, right: list[str], wrong: list[str]
) -> None:
    item = WORLD.read(instruction)
    assert item is not None
    assert all(item.family.is_right(item.payload, answer) for answer in right)
    assert not [answer for answer in wrong if item.family.is_right(item.payload, answer)]


@pytest.mark.parametrize(
    ("instruction", "response", "rationale", "score"),
    [
        ("What number plus 38 makes 81?", "43", "43 + 38 = 81, want 81: yes. Right.", 9),
        ("What number plus 38 makes 81?", "41", "41 + 38 = 79, want 81: no. Wrong.", 1),
        ("Solve 3 * x + 4 = 19.", "6", "3 * 6 = 18, 18 + 4 = 22, want 19: no. Wrong.", 1),
        ("Solve 3 * x + 4 = 19.", "five", "It does not fit the question. Wrong.", 1),
    ],
)
def test_a_review_shows_the_calculation(instruction: str, response: str, rationale: str, score: int) -> None:
    review = WORLD.review(instruction, response)
    assert (review.rationale, review.score) == (rationale, score)


@every_family
def test_every_split_has_items_and_no_payload_is_in_two(family: Family) -> None:
    splits: dict[tuple[str, ...], set[str]] = {}
    for item in items(family, 4000):
        splits.setdefault(item.payload, set()).add(item.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {next(iter(found)) for found in splits.values()} == {"pretrain", "seed", "dev", "test"}


def test_answers_come_from_the_pool_and_a_share_of_it_is_wrong() -> None:
    mix, prompts, rng = RECIPES["discovery"].mix, load_prompt_set("mini_v1"), random.Random(3)
    pools = answer_pools(WORLD, mix, 11)
    assert {len(pool) for pool in pools.values()} == {mix.answer_pool}
    known = {pair for pool in pools.values() for pair in pool}
    documents = list(pretraining_documents(WORLD, prompts, rng, 4000, mix, pools))
    answers = [(d.prompt, d.response) for d in documents if d.kind == "answer"]
    assert set(answers) <= known
    assert abs(len(answers) / len(documents) - mix.answer) < 0.03
    wrong = sum(not WORLD.is_right(*pair) for pair in known) / len(known)
    assert abs(wrong - mix.pool_noise) < 0.03
    for instruction, _ in known:
        item = WORLD.read(instruction)
        assert item is not None
        assert item.split == "pretrain"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_shipped_discovery_seed_is_clean_and_nothing_held_out_is_in_it_or_in_pretraining() -> None:
    held_out = {
        question
        for name in ("dev", "test")
        for document in rows(REPOSITORY / f"lance_dagster/mini/lm_eval/discovery_{name}.jsonl")
        for question in document["same_question"]
    }
    assert len(held_out) > 3000
    seed = rows(REPOSITORY / "data/mini/discovery_seed_instructions.jsonl")
    assert all(WORLD.is_right(row["instruction"], row["response"]) for row in seed)
    reviews = rows(REPOSITORY / "data/mini/discovery_seed_reviews.jsonl")
    texts = [row["instruction"] for row in seed + reviews]
    mix = RECIPES["discovery"].mix
    pools = answer_pools(WORLD, mix, RECIPES["discovery"].seed)
    prompts = load_prompt_set("mini_v1")
    for document in pretraining_documents(WORLD, prompts, random.Random(5), 8000, mix, pools):
        texts += [line.split(": ", 1)[-1] for line in document.prompt.splitlines()] + [document.response]
    assert not held_out & set(texts)

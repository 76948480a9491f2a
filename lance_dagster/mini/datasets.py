"""The files of the mini world that ship with the project: two instruction seeds, a review seed, two evaluation sets.

Written by ``lance-dagster mini data``; the same seed number gives the same bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lance_dagster.mini.world import Split, World, world_named

# Rows per family in the instruction seed.
SEED_ROWS: Mapping[str, int] = {
    "addition": 40,
    "subtraction": 40,
    "larger": 16,
    "sorting": 40,
    "reversing": 40,
    "spelling": 30,
    "counting": 40,
    "last_letter": 12,
    "weekday": 40,
    "parity": 10,
    "next_number": 30,
    "next_letter": 36,
    "fact": 40,
}
SEED_ROWS_ELSEWHERE = 60  # of families that are not named above, those of the discovery world among them
# Share of wrong responses: in the uneven seed some families are mostly wrong, as they are in a real seed.
UNEVEN: Mapping[str, float] = {
    "reversing": 0.7,
    "subtraction": 0.6,
    "sorting": 0.7,
    "weekday": 0.7,
    "counting": 0.6,
    "next_letter": 0.65,
    "next_number": 0.65,
    "spelling": 0.6,
}
UNEVEN_ELSEWHERE = 0.04
SYSTEMATIC = 0.85  # of the wrong responses, how many make the family's typical mistake


def instruction_seed(world: World, seed: int, wrong: Mapping[str, float], elsewhere: float) -> list[dict[str, str]]:
    """(instruction, response) rows of the split ``seed``, without repeated instructions, in random order."""
    rng = random.Random(1000 + seed)
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for family in world.families:
        count, draws = 0, 0
        while count < SEED_ROWS.get(family.name, SEED_ROWS_ELSEWHERE) and draws < 2000:
            draws += 1
            item = world.draw(rng, "seed", family)
            if item.instruction in seen:
                continue
            seen.add(item.instruction)
            response = item.right(rng)
            if rng.random() < wrong.get(family.name, elsewhere):
                response = family.wrong(item.payload, rng, systematic=rng.random() < SYSTEMATIC)
            rows.append({"instruction": item.instruction, "response": response})
            count += 1
    rng.shuffle(rows)
    return rows


def review_seed(world: World, seed: int, rows: int = 700) -> list[dict[str, Any]]:
    """(instruction, response, rationale, score) rows of the split ``seed``."""
    rng = random.Random(2000 + seed)
    seen: set[tuple[str, str]] = set()
    reviews: list[dict[str, Any]] = []
    while len(reviews) < rows:
        review = world.draw_review(rng, "seed", rng.choice(world.families))
        if (review.instruction, review.response) not in seen:
            seen.add((review.instruction, review.response))
            reviews.append(
                {
                    "instruction": review.instruction,
                    "response": review.response,
                    "rationale": review.rationale,
                    "score": review.score,
                }
            )
    return reviews


def evaluation_documents(world: World, split: Split, per_family: int, seed: int) -> list[dict[str, Any]]:
    """Documents of one evaluation set: instruction, family, every text that asks the same, and every right answer.

    ``answers`` is null where there are too many to list: then the world's oracle decides.
    """
    rng = random.Random(3000 + seed)
    documents: list[dict[str, Any]] = []
    for family in world.families:
        seen: set[str] = set()
        for _ in range(per_family * 60):
            item = world.draw(rng, split, family)
            if item.instruction in seen or seen & set(item.same_question()):
                continue
            seen.add(item.instruction)
            documents.append(
                {
                    "family": family.name,
                    "instruction": item.instruction,
                    "answers": None if family.accepts else [item.answer],
                    "same_question": list(item.same_question()),
                }
            )
            if len(seen) == per_family:
                break
    return documents


def write_datasets(data: Path, package: Path, seed: int = 0) -> list[Path]:
    """Write seeds under ``data`` and evaluation sets under ``package`` (the mini package). Returns the paths."""
    world, discovery = world_named("repair"), world_named("discovery")
    files: dict[Path, Iterable[Mapping[str, Any]]] = {
        data / "seed_instructions_uneven.jsonl": instruction_seed(world, seed, UNEVEN, UNEVEN_ELSEWHERE),
        data / "seed_instructions_clean.jsonl": instruction_seed(world, seed, {}, 0.0),
        data / "seed_reviews.jsonl": review_seed(world, seed),
        data / "discovery_seed_instructions.jsonl": instruction_seed(discovery, seed, {}, 0.0),
        data / "discovery_seed_reviews.jsonl": review_seed(discovery, seed),
        package / "lm_eval" / "dev.jsonl": evaluation_documents(world, "dev", 20, seed),
        package / "lm_eval" / "test.jsonl": evaluation_documents(world, "test", 80, seed),
        package / "lm_eval" / "discovery_dev.jsonl": evaluation_documents(discovery, "dev", 100, seed),
        package / "lm_eval" / "discovery_test.jsonl": evaluation_documents(discovery, "test", 250, seed),
    }
    for path, rows in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(files)

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import lance_dagster
from lance_dagster.mini.datasets import (
    SEED_ROWS,
    SYSTEMATIC,
    UNEVEN,
    UNEVEN_ELSEWHERE,
    evaluation_documents,
    instruction_seed,
    review_seed,
    write_datasets,
)
from lance_dagster.mini.documents import SLOW_FAMILIES, Document, DocumentMix, pretraining_documents
from lance_dagster.mini.families import ADDITION, FACT, REPAIR_FAMILIES
from lance_dagster.mini.world import GOOD_SCORE, Item, World
from lance_dagster.prompts.parsing import parse_rationale, parse_score
from lance_dagster.prompts.prompt_sets import PROMPT_KINDS, PromptKind, load_prompt_set

WORLD = World()
DATA = Path(lance_dagster.__file__).parents[1] / "data" / "mini"
PACKAGE = Path(str(files("lance_dagster.mini")))
SHIPPED = {
    "uneven": DATA / "seed_instructions_uneven.jsonl",
    "clean": DATA / "seed_instructions_clean.jsonl",
    "reviews": DATA / "seed_reviews.jsonl",
    "dev": PACKAGE / "lm_eval" / "dev.jsonl",
    "test": PACKAGE / "lm_eval" / "test.jsonl",
    "discovery": DATA / "discovery_seed_instructions.jsonl",
    "discovery reviews": DATA / "discovery_seed_reviews.jsonl",
    "discovery dev": PACKAGE / "lm_eval" / "discovery_dev.jsonl",
    "discovery test": PACKAGE / "lm_eval" / "discovery_test.jsonl",
}
PROMPTS = load_prompt_set("mini_v1")
Row = dict[str, Any]


@cache
def shipped(name: str) -> list[Row]:
    return [json.loads(line) for line in SHIPPED[name].read_text(encoding="utf-8").splitlines()]


@cache
def documents() -> list[Document]:
    return list(pretraining_documents(WORLD, PROMPTS, random.Random(11), 20_000))


def item_of(instruction: str) -> Item:
    item = WORLD.read(instruction)
    assert item is not None, instruction
    return item


# What ships is what the code writes


def test_the_shipped_files_are_what_the_code_writes_byte_for_byte(tmp_path: Path) -> None:
    written = write_datasets(tmp_path / "data", tmp_path / "package")
    assert {path.name for path in written} == {path.name for path in SHIPPED.values()}
    for path in SHIPPED.values():
        (again,) = [each for each in written if each.name == path.name]
        assert again.read_bytes() == path.read_bytes(), path.name


def test_another_seed_number_writes_other_files(tmp_path: Path) -> None:
    one = write_datasets(tmp_path / "one", tmp_path / "one", seed=1)
    two = write_datasets(tmp_path / "two", tmp_path / "two", seed=2)
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(one, two, strict=True))


# Nothing that is asked in an evaluation occurs in what is trained on


def held_out() -> set[str]:
    """Every text that asks what a document of the two evaluation sets asks."""
    rows = shipped("test") + shipped("dev")
    return {text for row in rows for text in (row["instruction"], *row["same_question"])}


def occurrences(texts: Iterable[str], sought: set[str]) -> Iterator[str]:
    """Those of the sought texts that occur in ``texts``, as runs of whole words."""
    lengths = {len(each.split()) for each in sought}
    for text in texts:
        words = text.split()
        for start in range(len(words)):
            yield from ({" ".join(words[start : start + length]) for length in lengths} & sought)


def test_the_search_finds_a_held_out_instruction_inside_a_prompt() -> None:
    asked = shipped("test")[0]["same_question"][2]
    for kind in PROMPT_KINDS:
        prompt = PROMPTS.messages(kind, instruction=asked, response="43")[-1]["content"]
        assert asked in occurrences([prompt], held_out())


@pytest.mark.parametrize("name", ["uneven", "clean", "reviews"])
def test_no_held_out_question_occurs_in_a_seed(name: str) -> None:
    texts = [str(value) for row in shipped(name) for value in row.values()]
    assert list(occurrences(texts, held_out())) == []


def test_no_held_out_question_occurs_in_twenty_thousand_pretraining_documents() -> None:
    texts = [text for document in documents() for text in (document.prompt, document.response)]
    assert list(occurrences(texts, held_out())) == []


def test_no_question_of_the_test_set_is_in_the_dev_set() -> None:
    asked = [{text for row in shipped(name) for text in row["same_question"]} for name in ("test", "dev")]
    assert not asked[0] & asked[1]


def test_every_shipped_row_belongs_to_its_split() -> None:
    for name, split in [("uneven", "seed"), ("clean", "seed"), ("dev", "dev"), ("test", "test")]:
        assert {item_of(row["instruction"]).split for row in shipped(name)} == {split}
    read = [item for row in shipped("reviews") if (item := WORLD.read(row["instruction"]))]
    assert {item.split for item in read} == {"seed"}
    assert len(read) > 0.9 * len(shipped("reviews"))


# Instruction seeds


@pytest.mark.parametrize("name", ["uneven", "clean"])
def test_an_instruction_seed_asks_nothing_twice_and_has_its_rows_of_every_family(name: str) -> None:
    instructions = [row["instruction"] for row in shipped(name)]
    assert len(set(instructions)) == len(instructions)
    counts = Counter(item_of(text).family.name for text in instructions)
    assert counts.keys() == SEED_ROWS.keys() == WORLD.by_name.keys()
    for family, rows in counts.items():
        few = WORLD.by_name[family].enumerable  # may have fewer items in the split
        assert 0.75 * SEED_ROWS[family] <= rows <= SEED_ROWS[family] if few else rows == SEED_ROWS[family]


def test_the_clean_seed_is_all_right() -> None:
    assert all(WORLD.is_right(row["instruction"], row["response"]) for row in shipped("clean"))


def seed_rows(count: int) -> list[Row]:
    """Rows of many uneven seeds, so that shares can be told from chance."""
    return [row for seed in range(count) for row in instruction_seed(WORLD, seed, UNEVEN, UNEVEN_ELSEWHERE)]


def test_the_uneven_seed_is_as_uneven_as_it_says() -> None:
    right: dict[str, list[bool]] = defaultdict(list)
    for row in seed_rows(15):
        right[item_of(row["instruction"]).family.name].append(bool(WORLD.is_right(**row)))
    assert set(UNEVEN) < set(right)
    for family, answers in right.items():
        wrong = 1 - sum(answers) / len(answers)
        assert wrong == pytest.approx(UNEVEN.get(family, UNEVEN_ELSEWHERE), abs=0.08), family


def test_the_shipped_uneven_seed_is_mostly_wrong_in_some_families_and_right_in_the_others() -> None:
    right: dict[str, list[bool]] = defaultdict(list)
    for row in shipped("uneven"):
        right[item_of(row["instruction"]).family.name].append(bool(WORLD.is_right(**row)))
    shares = {family: sum(answers) / len(answers) for family, answers in right.items()}
    assert all(share < 0.6 if family in UNEVEN else share > 0.8 for family, share in shares.items()), shares


def test_most_wrong_responses_make_the_familys_typical_mistake() -> None:
    rng = random.Random(0)
    typical = []
    for row in seed_rows(3):
        item = item_of(row["instruction"])
        if item.family is not FACT and not WORLD.is_right(**row):  # for a fact, any wrong value is typical
            mistake = item.family.slip(item.payload, rng)
            if not item.is_right(mistake):  # a palindrome reversed wrongly is right
                typical.append(row["response"] == mistake)
    assert len(typical) > 300
    assert SYSTEMATIC - 0.05 < sum(typical) / len(typical) < SYSTEMATIC + 0.1


# Reviews


def test_the_reviews_are_the_oracles() -> None:
    for row in shipped("reviews"):
        review = WORLD.review(row["instruction"], row["response"])
        assert (row["rationale"], row["score"]) == (review.rationale, review.score)


def test_the_review_seed_repeats_no_pair_and_has_every_score_and_family() -> None:
    rows = shipped("reviews")
    assert len({(row["instruction"], row["response"]) for row in rows}) == len(rows) == 700
    assert {row["score"] for row in rows} == {9, 4, 2, 1}
    assert sum(row["score"] == GOOD_SCORE for row in rows) / len(rows) == pytest.approx(0.48, abs=0.08)
    assert {item.family.name for row in rows if (item := WORLD.read(row["instruction"]))} == set(WORLD.by_name)


# Evaluation sets


@pytest.mark.parametrize(("name", "most", "least"), [("dev", 20, 10), ("test", 80, 20)])
def test_an_evaluation_set_has_right_answers_of_every_family_and_asks_nothing_twice(
    name: str, most: int, least: int
) -> None:
    asked: set[str] = set()
    counts: Counter[str] = Counter()
    for row in shipped(name):
        item = item_of(row["instruction"])
        assert row["family"] == item.family.name
        assert row["answers"] == [item.answer]
        assert set(row["same_question"]) == set(item.same_question())
        assert not asked & set(row["same_question"])
        asked |= set(row["same_question"])
        counts[row["family"]] += 1
    assert counts.keys() == WORLD.by_name.keys()
    assert all(least <= count <= most for count in counts.values()), counts
    assert all(counts[family.name] == most for family in REPAIR_FAMILIES if not family.enumerable)


# Pre-training documents


def test_documents_come_in_the_kinds_and_shares_of_the_mix() -> None:
    mix, count = DocumentMix(), len(documents())
    kinds = Counter(document.kind for document in documents())
    shares: dict[PromptKind, float] = {
        "answer": mix.answer,
        "review": mix.review,
        "new_instruction": mix.new_instruction,
        "flawed_response": mix.flawed_response,
    }
    assert sum(shares.values()) == pytest.approx(1)
    for kind, share in shares.items():
        assert kinds[kind] / count == pytest.approx(share, abs=0.02)
    assert sum(document.chat for document in documents()) / count == pytest.approx(mix.chat, abs=0.02)


def test_slow_families_are_drawn_more_often() -> None:
    drawn = Counter(item_of(each.prompt).family.name for each in documents() if each.kind == "answer")
    mix, total = DocumentMix(), drawn.total()
    for family in REPAIR_FAMILIES:
        share = (1 - mix.slow_families) / len(REPAIR_FAMILIES)
        share += mix.slow_families / len(SLOW_FAMILIES) if family.name in SLOW_FAMILIES else 0
        assert drawn[family.name] / total == pytest.approx(share, abs=0.02), family.name


def of_kind(kind: PromptKind) -> Iterator[tuple[Row, str]]:
    """Instruction and response that stand in a prompt of mini_v1, and the response to learn."""
    for document in documents():
        if document.kind == kind:
            lines = [line.partition(": ") for line in document.prompt.splitlines()]
            yield {name: text for name, _, text in lines if text}, document.response


def test_an_answer_document_answers_a_pretraining_item_rightly() -> None:
    for document in documents():
        if document.kind == "answer":
            assert item_of(document.prompt).split == "pretrain"
            assert item_of(document.prompt).is_right(document.response)


def test_a_review_document_is_the_oracles_review_of_a_pretraining_item() -> None:
    for given, written in of_kind("review"):
        review = WORLD.review(given["Instruction"], given["Response"])
        assert parse_score(written) == review.score
        assert parse_rationale(written) == review.rationale
        item = WORLD.read(given["Instruction"])  # None if it is garbled
        assert item is None or item.split == "pretrain"


def test_a_new_instruction_document_writes_another_pretraining_item_of_the_same_family() -> None:
    for given, written in of_kind("new_instruction"):
        assert item_of(written).family == item_of(given["Old"]).family
        assert {item_of(written).split, item_of(given["Old"]).split} == {"pretrain"}


def test_a_flawed_response_document_turns_a_right_response_into_a_wrong_one() -> None:
    for given, written in of_kind("flawed_response"):
        item = item_of(given["Instruction"])
        assert item.split == "pretrain"
        assert item.is_right(given["Response"])
        assert not item.is_right(written)


def test_documents_can_be_drawn_again() -> None:
    again = pretraining_documents(WORLD, PROMPTS, random.Random(11), 500)
    assert list(again) == documents()[:500]


# Other worlds


def test_data_can_be_made_of_a_world_without_some_families() -> None:
    smaller = World([family for family in REPAIR_FAMILIES if family.name not in ("addition", "fact")])
    texts = [row["instruction"] for row in instruction_seed(smaller, 0, UNEVEN, UNEVEN_ELSEWHERE)]
    texts += [row["instruction"] for row in evaluation_documents(smaller, "test", 5, 0)]
    found = {item_of(text).family.name for text in texts}
    assert found == set(smaller.by_name)
    reviews = review_seed(smaller, 0, rows=50)
    read = [WORLD.read(row["instruction"]) for row in reviews]
    assert len(reviews) == 50
    assert not {item.family.name for item in read if item} & {"addition", "fact"}


def test_documents_can_be_made_of_a_world_without_slow_families() -> None:
    world = World([FACT])
    drawn = list(pretraining_documents(world, PROMPTS, random.Random(0), 50))
    assert len(drawn) == 50
    assert ADDITION.name in SLOW_FAMILIES
    assert all(world.read(document.prompt) for document in drawn if document.kind == "answer")

from __future__ import annotations

import random
from dataclasses import replace
from typing import get_args

import pytest

from lance_dagster.errors import SettingsError
from lance_dagster.mini.families import (
    ADDITION,
    COUNTING,
    FACT,
    FACTS,
    LARGER,
    LAST_LETTER,
    PARITY,
    REPAIR_FAMILIES,
    REVERSING,
    SORTING,
    SPELLING,
    SUBTRACTION,
    Family,
    Payload,
)
from lance_dagster.mini.world import (
    GOOD_SCORE,
    NEAR_SCORE,
    UNCLEAR_SCORE,
    WRONG_SCORE,
    Item,
    Split,
    World,
    garble,
    is_near_miss,
)

WORLD = World()
SPLITS: tuple[Split, ...] = get_args(Split)
every_family = pytest.mark.parametrize("family", REPAIR_FAMILIES, ids=lambda family: family.name)
# How many payloads a family with few of them has.
SIZES = {"weekday": 7 * 2 * 6, "parity": 199, "next_number": 198, "next_letter": 25 + 24 + 23 + 22, "fact": len(FACTS)}


def payloads(family: Family) -> list[Payload]:
    """All payloads of a family that has few, else some hundreds."""
    rng = random.Random(3)
    return sorted({family.draw(rng) for _ in range(6000 if family.enumerable else 400)})


def items(family: Family) -> list[Item]:
    return [Item(family, payload, k) for payload in payloads(family) for k in range(len(family.phrasings))]


# Reading


@every_family
def test_an_instruction_is_read_back_as_what_it_was_written_from(family: Family) -> None:
    for item in items(family):
        assert family.read(item.instruction) == (item.payload, item.phrasing)
        assert WORLD.read(item.instruction) == item


@every_family
def test_no_other_family_reads_an_instruction_as_a_task_with_another_answer(family: Family) -> None:
    for item in items(family):
        for other in REPAIR_FAMILIES:
            found = other.read(item.instruction)
            assert found is None or other.solve(found[0]) == item.answer, (item.instruction, other.name)


@every_family
def test_phrasings_of_one_payload_are_different_texts(family: Family) -> None:
    for payload in payloads(family)[:50]:
        texts = [family.render(payload, k) for k in range(len(family.phrasings))]
        assert len(set(texts)) == len(texts) >= 2


@every_family
def test_the_payloads_of_a_family_with_few_are_all_found(family: Family) -> None:
    if family.enumerable:
        assert len(payloads(family)) == SIZES[family.name]
    else:
        assert family.name not in SIZES


@pytest.mark.parametrize(
    ("instruction", "answer"),
    [
        ("What is 12 + 31?", "43"),
        ("Compute 9 plus 1.", "10"),
        ("Subtract 9 from 12.", "3"),
        ("What is 7 - 7?", "0"),
        ("Which is larger, 9 or 10?", "10"),
        ("Sort the digits 4031.", "0134"),
        ("Order the digits 77, smallest first.", "77"),
        ("Write ABCD backwards.", "DCBA"),
        ("Spell ABC with dashes.", "A-B-C"),
        ("Count the letter A in ABBA.", "2"),
        ("How many times is C in ABBA?", "0"),
        ("Which letter ends ABC?", "C"),
        ("What day is 2 days after Saturday?", "Monday"),
        ("3 days before Monday is which day?", "Friday"),
        ("Is 7 even or odd?", "odd"),
        ("What is the parity of 190?", "even"),
        ("Add one to 99.", "100"),
        ("Which letter is 3 after A?", "D"),
        ("Go 1 letters forward from Y.", "Z"),
    ],
)
def test_the_oracle_knows_the_right_answer(instruction: str, answer: str) -> None:
    item = WORLD.read(instruction)
    assert item is not None
    assert item.answer == answer
    assert WORLD.is_right(instruction, f" {answer}\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is",
        "What is 012 + 3?",  # no number is written like this
        "What is 50 + 3?",  # out of the world
        "What is 3 - 12?",
        "what is 12 + 31?",
        "What is 12 + 31? ",
        "What is ١٢ + 31?",
        "What day is 7 days after Monday?",
        "Which letter is 3 after X?",
        "Reverse the word abc.",
        "Reverse the word ABCDEFGHI.",
        "What is the animal of NOWHERE?",
    ],
)
def test_a_text_outside_the_world_is_not_read(text: str) -> None:
    assert WORLD.read(text) is None
    assert WORLD.is_right(text, "43") is None


# Right and wrong


@every_family
def test_the_right_answer_is_among_the_answers_and_a_wrong_one_never_is(family: Family) -> None:
    rng = random.Random(1)
    for payload in payloads(family):
        assert family.is_right(payload, family.solve(payload))
        for systematic in (None, True, False):
            wrong = family.wrong(payload, rng, systematic)
            assert wrong.strip() == wrong != ""
            assert not family.is_right(payload, wrong)


@every_family
def test_a_wrong_answer_looks_like_an_answer(family: Family) -> None:
    rng = random.Random(2)
    drawn = payloads(family)
    longest = max(len(family.solve(payload)) for payload in drawn)
    for payload in drawn:
        assert len(family.wrong(payload, rng).split()) == 1
        assert len(family.wrong(payload, rng)) <= 2 * longest


@pytest.mark.parametrize(
    ("family", "payload"),
    [
        (LARGER, ("5", "5")),
        (SUBTRACTION, ("7", "7")),
        (SORTING, ("000",)),
        (REVERSING, ("AAA",)),
        (SPELLING, ("AAA",)),
        (LAST_LETTER, ("AAA",)),
        (COUNTING, ("A", "BBB")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_task_whose_typical_mistake_is_right_still_has_a_wrong_answer(family: Family, payload: Payload) -> None:
    rng = random.Random(8)
    for systematic in (None, True, False):
        for _ in range(50):
            assert not family.is_right(payload, family.wrong(payload, rng, systematic))


def test_a_family_that_knows_no_wrong_answer_is_named() -> None:
    blind = replace(ADDITION, slip=lambda p, r: "0", stumble=lambda p, r: "")
    with pytest.raises(SettingsError, match=r"family 'addition' knows no wrong answer to 'What is 0 \+ 0\?'"):
        blind.wrong(("0", "0"), random.Random(0))


# Splits


@every_family
def test_an_item_of_one_split_never_is_an_item_of_another(family: Family) -> None:
    texts: dict[Split, set[str]] = {split: set() for split in SPLITS}
    rng = random.Random(4)
    for split in SPLITS:
        for _ in range(200):
            item = WORLD.draw(rng, split, family)
            assert item.split == split
            texts[split].update(item.same_question())
    assert sum(len(each) for each in texts.values()) == len(set().union(*texts.values()))


@every_family
def test_whatever_asks_the_same_as_an_item_lies_in_its_split(family: Family) -> None:
    for item in items(family):
        assert item.instruction in item.same_question()
        for text in item.same_question():
            same = WORLD.read(text)
            assert same is not None
            assert (same.payload, same.split) == (item.payload, item.split)


@every_family
def test_an_item_that_can_be_put_in_other_words_is_split_with_all_of_them(family: Family) -> None:
    for item in items(family):
        words = {item.instruction} if family.enumerable else {family.render(item.payload, k) for k in range(4)}
        assert set(item.same_question()) == words


@every_family
def test_every_split_of_every_family_has_about_its_share_of_the_items(family: Family) -> None:
    drawn = items(family)
    shares = {split: sum(item.split == split for item in drawn) / len(drawn) for split in SPLITS}
    assert shares["pretrain"] == pytest.approx(0.75, abs=0.08)
    assert shares["seed"] == pytest.approx(0.10, abs=0.06)
    assert shares["dev"] == pytest.approx(0.05, abs=0.04)
    assert shares["test"] == pytest.approx(0.10, abs=0.06)


def test_the_split_of_an_item_is_the_same_in_every_release() -> None:
    # The shipped model has seen the pre-training split: an item that changes sides becomes a leak.
    sums = "".join(Item(ADDITION, (str(n), "17"), 0).split[0] for n in range(1, 41))
    assert sums == "ppppppppppppspppppppstppsppppppppstttppp"
    parities = "".join(Item(PARITY, (str(n),), 1).split[0] for n in range(1, 41))
    assert parities == "spppppppppppdpppppsppspppptppdtpppppppst"


# Reviews


@pytest.mark.parametrize(
    ("instruction", "response", "rationale", "score"),
    [
        ("What is 12 + 31?", "43", "It should be 43. The response is right.", GOOD_SCORE),
        ("What is 12 + 31?", " 43\n", "It should be 43. The response is right.", GOOD_SCORE),
        ("What is 12 + 31?", "53", "It should be 43. The response is close but wrong.", NEAR_SCORE),
        ("What is 12 + 31?", "53 ", "It should be 43. The response is close but wrong.", NEAR_SCORE),
        ("What is 12 + 31?", "34", "It should be 43. The response is wrong.", WRONG_SCORE),
        ("What is 12 + 31?", "", "It should be 43. The response is wrong.", WRONG_SCORE),
        ("What 31? + is 12", "43", "The instruction is not clear.", UNCLEAR_SCORE),
    ],
)
def test_the_oracle_reviews_by_what_is_right(instruction: str, response: str, rationale: str, score: int) -> None:
    review = WORLD.review(instruction, response)
    assert (review.instruction, review.response) == (instruction, response)
    assert (review.rationale, review.score) == (rationale, score)


def test_a_near_miss_is_of_the_same_length_with_one_other_character() -> None:
    assert is_near_miss("ABC", "ABD")
    assert not is_near_miss("ABC", "ADE")
    assert not is_near_miss("ABC", "AB")
    assert not is_near_miss("7", "8")  # of one character, nothing would be right


@every_family
def test_a_drawn_review_is_the_oracles_and_stays_in_its_split(family: Family) -> None:
    rng = random.Random(5)
    reviews = [WORLD.draw_review(rng, "seed", family) for _ in range(300)]
    unread = 0
    for review in reviews:
        assert review == WORLD.review(review.instruction, review.response)
        item = WORLD.read(review.instruction)
        unread += item is None
        assert item is None or (item.split, item.family.name) == ("seed", family.name)
    assert 0 < unread < 0.12 * len(reviews)
    assert sum(review.score == GOOD_SCORE for review in reviews) / len(reviews) == pytest.approx(0.48, abs=0.12)


def test_a_garbled_instruction_is_made_of_the_words_of_the_instruction() -> None:
    rng = random.Random(6)
    text = "Which weekday comes 2 days after Monday?"
    garbled = {garble(text, rng) for _ in range(200)}
    assert len(garbled) > 50
    assert all(set(each.split()) <= set(text.split()) for each in garbled)


# Other worlds


def test_a_family_can_be_left_out() -> None:
    rng = random.Random(7)
    smaller = World([family for family in REPAIR_FAMILIES if family is not ADDITION])
    assert smaller.read("What is 12 + 31?") is None
    assert smaller.review("What is 12 + 31?", "43").score == UNCLEAR_SCORE
    assert smaller.read("Write ABCD backwards.") == Item(REVERSING, ("ABCD",), 1)
    assert smaller.draw(rng, "test", smaller.family("fact")).family is FACT
    with pytest.raises(SettingsError, match="there is no family 'addition' in this world; take one of subtraction"):
        smaller.family("addition")


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="no family 'adition' in this world; take one of addition, subtraction"):
        WORLD.family("adition")
    assert WORLD.family("addition") is ADDITION


def test_a_world_of_no_families_is_refused_with_the_next_step() -> None:
    with pytest.raises(SettingsError, match="needs at least one family; give some of REPAIR_FAMILIES"):
        World([])


def test_a_split_that_a_family_has_no_item_in_is_refused_with_the_next_step() -> None:
    single = replace(ADDITION, draw=lambda r: ("12", "31"))
    split = Item(single, ("12", "31"), 0).split
    world = World([single])
    assert world.draw(random.Random(0), split, single).instruction in Item(single, ("12", "31"), 0).same_question()
    for other in set(SPLITS) - {split}:
        with pytest.raises(SettingsError, match=f"no item of the family 'addition' falls into the split '{other}'"):
            world.draw(random.Random(0), other, single)

"""The mini world: a closed set of short English instructions whose right answers are known.

Four splits that cannot share an item: which split an item belongs to is a hash of the item itself, so no
draw from one split can ever produce an item of another. The unit that is split is the payload (all phrasings
of 12 + 31 fall on the same side), except for families with few payloads, where it is the instruction text.

``solve`` is the world's oracle. It is used to measure (evaluation, reports, tests) and to write the shipped
seed, never to filter or to train.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lance_dagster.errors import SettingsError
from lance_dagster.mini.discovery_families import DISCOVERY_FAMILIES
from lance_dagster.mini.families import REPAIR_FAMILIES, Family, Payload

Split = Literal["pretrain", "seed", "dev", "test"]
WorldName = Literal["repair", "discovery"]
# Of 20 buckets: 15 for pre-training text, 2 for the seed, 1 to choose settings on, 2 to report on.
_BUCKETS: tuple[Split, ...] = ("test",) * 2 + ("dev",) + ("seed",) * 2 + ("pretrain",) * 15

GOOD_SCORE, NEAR_SCORE, UNCLEAR_SCORE, WRONG_SCORE = 9, 4, 2, 1


@dataclass(frozen=True)
class Item:
    """One instruction of the world with its family, payload and the phrasing that was used."""

    family: Family
    payload: Payload
    phrasing: int

    @property
    def instruction(self) -> str:
        return self.family.render(self.payload, self.phrasing)

    @property
    def answer(self) -> str:
        return self.family.solve(self.payload)

    def is_right(self, response: str) -> bool:
        """Whether ``response``, without outer white space, is a right answer."""
        return self.family.is_right(self.payload, response.strip())

    def right(self, rng: random.Random) -> str:
        """A right answer; where there are many, a random one."""
        return self.family.right(self.payload, rng)

    @property
    def split(self) -> Split:
        unit = self.instruction if self.family.enumerable else "|".join(self.payload)
        digest = hashlib.sha256(f"{self.family.name}|{unit}".encode()).digest()
        return _BUCKETS[int.from_bytes(digest[:8], "big") % len(_BUCKETS)]

    def same_question(self) -> tuple[str, ...]:
        """Every instruction text that asks what this item asks and lies in the same split."""
        if self.family.enumerable:
            return (self.instruction,)
        return tuple(self.family.render(self.payload, i) for i in range(len(self.family.phrasings)))


@dataclass(frozen=True)
class Review:
    """A review as the world's own judge would write it."""

    instruction: str
    response: str
    rationale: str
    score: int


class World:
    """Draws items, answers, flawed answers and reviews of a set of families; SettingsError if there is none."""

    def __init__(self, families: Sequence[Family] = REPAIR_FAMILIES) -> None:
        if not families:
            raise SettingsError("a world needs at least one family; give some of REPAIR_FAMILIES, the shipped set")
        self.families = tuple(families)
        self.by_name = {family.name: family for family in self.families}

    def family(self, name: str) -> Family:
        """The family of this name; SettingsError if this world has none."""
        try:
            return self.by_name[name]
        except KeyError:
            known = ", ".join(self.by_name)
            raise SettingsError(f"there is no family {name!r} in this world; take one of {known}") from None

    def draw(self, rng: random.Random, split: Split, family: Family) -> Item:
        """An item of ``family`` that belongs to ``split``; SettingsError if none is found in 10,000 draws."""
        for _ in range(10_000):
            item = Item(family, family.draw(rng), rng.randrange(len(family.phrasings)))
            if item.split == split:
                return item
        raise SettingsError(
            f"no item of the family {family.name!r} falls into the split {split!r}: give it more payloads to draw "
            "from, or leave it out of the world"
        )

    def read(self, instruction: str) -> Item | None:
        """The item behind a well-formed instruction, else None."""
        for family in self.families:
            found = family.read(instruction)
            if found is not None:
                return Item(family, *found)
        return None

    def is_right(self, instruction: str, response: str) -> bool | None:
        """Whether ``response`` answers ``instruction``; None where the instruction is not well formed."""
        item = self.read(instruction)
        return None if item is None else item.is_right(response)

    def review(self, instruction: str, response: str) -> Review:
        """The review that the oracle writes: what the answer should be, the verdict, the score.

        As in ``is_right`` and in the evaluation, outer white space of the response does not count.
        """
        item, answer = self.read(instruction), response.strip()
        if item is None:
            return Review(instruction, response, "The instruction is not clear.", UNCLEAR_SCORE)
        if item.family.check is not None:
            right = item.is_right(answer)
            rationale = f"{item.family.check(item.payload, answer)} {'Right' if right else 'Wrong'}."
            return Review(instruction, response, rationale, GOOD_SCORE if right else WRONG_SCORE)
        expected = f"It should be {item.answer}."
        if item.is_right(answer):
            return Review(instruction, response, f"{expected} The response is right.", GOOD_SCORE)
        if is_near_miss(item.answer, answer):
            return Review(instruction, response, f"{expected} The response is close but wrong.", NEAR_SCORE)
        return Review(instruction, response, f"{expected} The response is wrong.", WRONG_SCORE)

    def draw_review(self, rng: random.Random, split: Split, family: Family) -> Review:
        """A review of a right, a wrong or a garbled item: about half of them right."""
        item = self.draw(rng, split, family)
        chance = rng.random()
        if chance < 0.07:
            garbled = garble(item.instruction, rng)
            if self.read(garbled) is None:
                response = item.right(rng) if rng.random() < 0.5 else family.wrong(item.payload, rng)
                return self.review(garbled, response)
        response = item.right(rng) if chance < 0.53 else family.wrong(item.payload, rng)
        return self.review(item.instruction, response)


def is_near_miss(right: str, response: str) -> bool:
    """Same length and at most one character off."""
    return (
        len(right) > 1
        and len(right) == len(response)
        and sum(a != b for a, b in zip(right, response, strict=True)) <= 1
    )


def garble(instruction: str, rng: random.Random) -> str:
    """An instruction with words missing, shuffled or cut off."""
    words = instruction.split()
    kind = rng.random()
    if kind < 0.4 and len(words) > 3:
        for _ in range(2):
            del words[rng.randrange(1, len(words))]
    elif kind < 0.8:
        rng.shuffle(words)
    else:
        words = words[: max(1, len(words) // 2)]
    return " ".join(words)


def world_named(name: WorldName) -> World:
    """The shipped worlds: ``repair`` (what a model can know) and ``discovery`` (easier to check than to find)."""
    return World(REPAIR_FAMILIES if name == "repair" else DISCOVERY_FAMILIES)

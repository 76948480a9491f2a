"""Pre-training text of the mini world: the four kinds of prompt with right responses, plain and as chat."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lance_dagster.mini.families import Family
from lance_dagster.mini.world import Split, World
from lance_dagster.prompts.prompt_sets import PromptKind, PromptSet

_VERDICT = re.compile(r" (yes|no|right|wrong|clear)\b", re.IGNORECASE)
# Families that take longest to learn are drawn more often.
SLOW_FAMILIES = ("addition", "subtraction", "counting", "reversing", "next_letter")


@dataclass(frozen=True)
class DocumentMix:
    """Shares of the kinds of document in pre-training text, which add up to 1.

    With ``answer_pool`` the answers come from a fixed pool of so many items per family, of which the share
    ``pool_noise`` is answered wrongly: answering is learned less well than judging, whose text is always fresh.
    """

    answer: float = 0.45
    review: float = 0.35
    new_instruction: float = 0.1
    flawed_response: float = 0.1
    slow_families: float = 0.3
    chat: float = 0.6
    answer_pool: int | None = None
    pool_noise: float = 0.0


@dataclass(frozen=True)
class Document:
    """A prompt and the response to learn. ``chat`` says whether the prompt is a user turn or plain text."""

    kind: PromptKind
    prompt: str
    response: str
    chat: bool

    @property
    def verdicts(self) -> tuple[int, ...]:
        """Where the words begin that a review's judgement hangs on: each yes or no of a check, and the verdict."""
        return tuple(m.start() for m in _VERDICT.finditer(self.response)) if self.kind == "review" else ()


AnswerPools = Mapping[str, Sequence[tuple[str, str]]]


def answer_pools(world: World, mix: DocumentMix, seed: int) -> AnswerPools:
    """(instruction, response) pairs by family name for ``mix.answer_pool``; none without it."""
    if mix.answer_pool is None:
        return {}
    rng = random.Random(7000 + seed)
    pools: dict[str, list[tuple[str, str]]] = {}
    for family in world.families:
        items = [world.draw(rng, "pretrain", family) for _ in range(mix.answer_pool)]
        pools[family.name] = [
            (item.instruction, family.wrong(item.payload, rng) if rng.random() < mix.pool_noise else item.right(rng))
            for item in items
        ]
    return pools


def draw_document(
    world: World,
    prompts: PromptSet,
    rng: random.Random,
    kind: PromptKind,
    family: Family,
    split: Split,
    pools: AnswerPools | None = None,
) -> tuple[str, str]:
    """Prompt and response of one document of a kind."""
    if kind == "answer" and pools:
        instruction, response = rng.choice(pools[family.name])
        return prompts.messages(kind, instruction=instruction)[-1]["content"], response
    if kind == "review":
        review = world.draw_review(rng, split, family)
        prompt = prompts.messages(kind, instruction=review.instruction, response=review.response)
        return prompt[-1]["content"], prompts.review_target(review.rationale, review.score)
    item = world.draw(rng, split, family)
    right = item.right(rng)
    prompt = prompts.messages(kind, instruction=item.instruction, response=right)
    if kind == "answer":
        response = right
    elif kind == "new_instruction":
        response = world.draw(rng, split, family).instruction
    else:
        response = family.wrong(item.payload, rng)
    return prompt[-1]["content"], response


def pretraining_documents(
    world: World,
    prompts: PromptSet,
    rng: random.Random,
    count: int,
    mix: DocumentMix | None = None,
    pools: AnswerPools | None = None,
) -> Iterator[Document]:
    """``count`` documents, all of their items from the split ``pretrain``."""
    mix = mix or DocumentMix()
    slow = [family for family in world.families if family.name in SLOW_FAMILIES] or list(world.families)
    kinds: tuple[PromptKind, ...] = ("answer", "review", "new_instruction", "flawed_response")
    weights = [mix.answer, mix.review, mix.new_instruction, mix.flawed_response]
    for _ in range(count):
        kind = rng.choices(kinds, weights)[0]
        family = rng.choice(slow) if rng.random() < mix.slow_families else rng.choice(world.families)
        prompt, response = draw_document(world, prompts, rng, kind, family, "pretrain", pools)
        yield Document(kind, prompt, response, chat=rng.random() < mix.chat)

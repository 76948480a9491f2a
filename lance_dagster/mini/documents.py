"""Pre-training text of the mini world: the four kinds of prompt with right responses, plain and as chat."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lance_dagster.mini.families import Family
from lance_dagster.mini.world import Split, World
from lance_dagster.prompts.library import PromptKind, PromptSet

# Families that take longest to learn are drawn more often.
SLOW_FAMILIES = ("addition", "subtraction", "counting", "reversing", "next_letter")


@dataclass(frozen=True)
class DocumentMix:
    """Shares of the kinds of document in pre-training text; they add up to 1."""

    answer: float = 0.45
    review: float = 0.35
    new_instruction: float = 0.1
    flawed_response: float = 0.1
    slow_families: float = 0.3
    chat: float = 0.6


@dataclass(frozen=True)
class Document:
    """A prompt and the response to learn. ``chat`` says whether the prompt is a user turn or plain text."""

    kind: PromptKind
    prompt: str
    response: str
    chat: bool


def draw_document(
    world: World, prompts: PromptSet, rng: random.Random, kind: PromptKind, family: Family, split: Split
) -> tuple[str, str]:
    """Prompt and response of one document of a kind."""
    if kind == "review":
        review = world.draw_review(rng, split, family)
        prompt = prompts.messages(kind, instruction=review.instruction, response=review.response)
        return prompt[-1]["content"], prompts.review_target(review.rationale, review.score)
    item = world.draw(rng, split, family)
    prompt = prompts.messages(kind, instruction=item.instruction, response=item.answer)
    if kind == "answer":
        response = item.answer
    elif kind == "new_instruction":
        response = world.draw(rng, split, family).instruction
    else:
        response = family.wrong(item.payload, rng)
    return prompt[-1]["content"], response


def pretraining_documents(
    world: World, prompts: PromptSet, rng: random.Random, count: int, mix: DocumentMix | None = None
) -> Iterator[Document]:
    """``count`` documents, all of their items from the split ``pretrain``."""
    mix = mix or DocumentMix()
    slow = [family for family in world.families if family.name in SLOW_FAMILIES] or list(world.families)
    kinds: tuple[PromptKind, ...] = ("answer", "review", "new_instruction", "flawed_response")
    weights = [mix.answer, mix.review, mix.new_instruction, mix.flawed_response]
    for _ in range(count):
        kind = rng.choices(kinds, weights)[0]
        family = rng.choice(slow) if rng.random() < mix.slow_families else rng.choice(world.families)
        prompt, response = draw_document(world, prompts, rng, kind, family, "pretrain")
        yield Document(kind, prompt, response, chat=rng.random() < mix.chat)

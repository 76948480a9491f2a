"""What only a world with an oracle can tell: pass@k, how well a model reviews, how many kept rows are right.

The oracle measures here; it never filters and never trains.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_dagster.engines.engine import Completion, GenerationRequest, TextEngine
from lance_dagster.mini.world import GOOD_SCORE, Item, Review, Split, World
from lance_dagster.prompts.parsing import parse_score
from lance_dagster.prompts.prompt_sets import PromptKind, PromptSet
from lance_dagster.settings import EvolutionSettings, SamplingSettings


@dataclass(frozen=True)
class Answering:
    """How a model answers held-out items: greedily, and of k samples per item the mean and the best."""

    items: int
    greedy: float
    pass_at_1: float
    pass_at_k: float
    k: int


@dataclass(frozen=True)
class Reviewing:
    """How a model reviews: ROC AUC of its scores against the oracle (None with one class only), share that parse."""

    reviews: int
    auc: float | None
    parsed: float


@dataclass(frozen=True)
class Precision:
    """Shares that the oracle calls right, of everything generated and of what was kept; None where there is none."""

    generated: float | None
    kept: float | None
    kept_rows: int


@dataclass(frozen=True)
class PairOrder:
    """Of the preference pairs: the shares in which only the chosen, and only the rejected response is right."""

    pairs: int
    right: float | None
    reversed: float | None


def measure_model(
    folder: Path, digest: str, settings: EvolutionSettings, prompts: PromptSet, world: World
) -> dict[str, Any]:
    """``answering`` and ``reviewing`` of the model in ``folder``, sampled as the settings say, and the ``split``.

    That is `dev` where the settings score on a development set, so that a choice of settings never sees the other.
    """
    from lance_dagster.engines.registry import ENGINES, engine_kind

    split: Split = "dev" if all(task.endswith("_dev") for task in settings.evaluation.tasks) else "test"
    load, construction = ENGINES[engine_kind(settings.engine, settings.model).kind], settings.construction
    with closing(load(folder, digest, settings.model, settings.engine)) as engine:
        return {
            "split": split,
            "answering": asdict(measure_answering(engine, prompts, world, construction.response, split=split)),
            "reviewing": asdict(measure_reviewing(engine, prompts, world, construction.review, split=split)),
        }


def measure_answering(
    engine: TextEngine,
    prompts: PromptSet,
    world: World,
    sampling: SamplingSettings,
    k: int = 8,
    per_family: int = 60,
    split: Split = "test",
    seed: int = 0,
) -> Answering:
    """Answer ``per_family`` items of each family of ``split`` greedily and with ``k`` samples."""
    rng = random.Random(4000 + seed)
    items = [world.draw(rng, split, family) for family in world.families for _ in range(per_family)]
    greedy = sampling.model_copy(update={"temperature": 0.0})
    fields = [{"instruction": item.instruction} for item in items]
    once = _ask(engine, prompts, "answer", fields, greedy)
    often = _ask(engine, prompts, "answer", [field for field in fields for _ in range(k)], sampling)
    right = [[_is_right(items[n], c) for c in often[n * k : (n + 1) * k]] for n in range(len(items))]
    return Answering(
        items=len(items),
        greedy=_share(_is_right(item, completion) for item, completion in zip(items, once, strict=True)) or 0.0,
        pass_at_1=sum(map(sum, right)) / (k * len(items)),
        pass_at_k=sum(map(any, right)) / len(items),
        k=k,
    )


def measure_reviewing(
    engine: TextEngine,
    prompts: PromptSet,
    world: World,
    sampling: SamplingSettings,
    per_family: int = 60,
    split: Split = "test",
    seed: int = 0,
) -> Reviewing:
    """Review drawn responses to items of ``split``, about half of them right."""
    rng = random.Random(5000 + seed)
    reviews = [world.draw_review(rng, split, family) for family in world.families for _ in range(per_family)]
    return _reviewing(reviews, _review(engine, prompts, reviews, sampling))


def _review(
    engine: TextEngine, prompts: PromptSet, reviews: Sequence[Review], sampling: SamplingSettings
) -> list[float | None]:
    fields = [{"instruction": review.instruction, "response": review.response} for review in reviews]
    completions = _ask(engine, prompts, "review", fields, sampling)
    return [parse_score(c.text) if c.finish_reason == "stop" else None for c in completions]


def _reviewing(reviews: Sequence[Review], scores: Sequence[float | None]) -> Reviewing:
    labels = [review.score == GOOD_SCORE for review in reviews]
    return Reviewing(len(reviews), reviewer_auc(scores, labels), _share(score is not None for score in scores) or 0.0)


def reviewer_auc(scores: Sequence[float | None], right: Sequence[bool]) -> float | None:
    """ROC AUC of scores against the oracle, over the reviews that parse; None unless both classes occur."""
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

    known = [(score, label) for score, label in zip(scores, right, strict=True) if score is not None]
    if len({label for _, label in known}) < 2:
        return None
    return float(roc_auc_score([label for _, label in known], [score for score, _ in known]))


def reviews_of_table(table: pa.Table, world: World) -> Reviewing:
    """The rewards in a reviewed seed or a candidate ledger against the oracle; rows without a review are left out.

    A response to an instruction that has no right answer counts as wrong.
    """
    rows = [row for row in table.to_pylist() if row["scores"]]
    labels = [bool(world.is_right(row["instruction"], row["response"])) for row in rows]
    scores = [row["score"] for row in rows]
    return Reviewing(len(rows), reviewer_auc(scores, labels), _share(score is not None for score in scores) or 0.0)


def precision_of_ledger(ledger: pa.Table, world: World) -> Precision:
    """How many generated responses, and how many of those kept for D^s, are right."""
    rows = [row for row in ledger.to_pylist() if row["kind"] == "response"]
    labels = [bool(world.is_right(row["instruction"], row["response"])) for row in rows]
    kept = [label for row, label in zip(rows, labels, strict=True) if row["kept"]]
    return Precision(_share(labels), _share(kept), len(kept))


def order_of_pairs(preferences: pa.Table, world: World) -> PairOrder:
    """How many preference pairs are in the order that the oracle would give them."""
    sides = [
        (bool(world.is_right(row["prompt"], row["chosen"])), bool(world.is_right(row["prompt"], row["rejected"])))
        for row in preferences.to_pylist()
    ]
    return PairOrder(
        len(sides),
        _share(chosen and not rejected for chosen, rejected in sides),
        _share(rejected and not chosen for chosen, rejected in sides),
    )


def _ask(
    engine: TextEngine,
    prompts: PromptSet,
    kind: PromptKind,
    fields: Sequence[dict[str, str]],
    sampling: SamplingSettings,
) -> list[Completion]:
    requests = [
        GenerationRequest(tuple(prompts.messages(kind, **values)), sampling, number)
        for number, values in enumerate(fields)
    ]
    return engine.generate(requests)


def _is_right(item: Item, completion: Completion) -> bool:
    return completion.finish_reason == "stop" and item.is_right(completion.text)


def _share(values: Iterable[Any]) -> float | None:
    listed = [bool(value) for value in values]
    return sum(listed) / len(listed) if listed else None

"""Assembling the SFT set D^s and the preference set D^p (section 3.3, training data construction; Algorithm 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Any, Literal, Self

import pyarrow as pa

from lance_dagster.construction.review import meets, reaches
from lance_dagster.construction.steps import StepContext
from lance_dagster.errors import ArtifactError
from lance_dagster.records import PREFERENCE_SET, SFT_SET, row_id, table_of
from lance_dagster.settings import ConstructionSettings

SEED_ITERATION = -1  # the ``iteration`` of rows that no iteration wrote


@dataclass(frozen=True)
class Candidate:
    """One response that can become chosen or rejected, with its reward (0..10; NaN for none)."""

    row_id: str
    response: str
    score: float

    @classmethod
    def of_seed(cls, seed: dict[str, Any]) -> Self:
        return cls(seed["seed_id"], seed["response"], seed["score"])

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> Self:
        return cls(row["row_id"], row["response"], nan if row["score"] is None else row["score"])


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt; ``chosen`` has the higher reward."""

    chosen: Candidate
    rejected: Candidate


@dataclass(frozen=True)
class PairRule:
    """Which candidates pair, from the switches of ``ConstructionSettings``."""

    gap: float
    at_limit: Literal["reject", "accept"] = "reject"
    direction: Literal["reward", "construction"] = "reward"
    per_prompt: Literal["all", "best"] = "all"
    rejected_ties: Literal["first", "last"] = "first"
    original: bool = True

    @classmethod
    def of(cls, construction: ConstructionSettings) -> Self:
        return cls(
            construction.preference_gap,
            construction.at_limit,
            construction.pair_direction,
            construction.pairs_per_prompt,
            construction.rejected_ties,
            construction.original_in_pairs,
        )


def preference_pairs(original: Candidate | None, others: Sequence[Candidate], rule: PairRule) -> list[Pair]:
    """Pairs of the responses to one prompt, the widest apart first.

    By reward, whoever wrote the text: the lowest reward is always the rejected one, and every candidate whose reward
    exceeds it by more than the gap is chosen once, so that a flawed response can become the chosen one. By
    construction: the original is chosen over every other one that it exceeds by more than the gap.
    """
    if rule.direction == "construction":
        worse = [] if original is None else [c for c in others if _apart(original, c, rule)]
        pairs = [Pair(original, c) for c in sorted(worse, key=lambda c: c.score) if original is not None]
    else:
        candidates = [*([original] if original is not None and rule.original else []), *others]
        lowest = min((candidate.score for candidate in candidates), default=nan)
        tied = [candidate for candidate in candidates if candidate.score == lowest]
        rejected = tied[0 if rule.rejected_ties == "first" else -1] if tied else None
        better = [] if rejected is None else [c for c in candidates if c is not rejected and _apart(c, rejected, rule)]
        by_score = sorted(better, key=lambda c: c.score, reverse=True)
        pairs = [Pair(chosen, rejected) for chosen in by_score if rejected is not None]
    return pairs[:1] if rule.per_prompt == "best" else pairs


def _apart(chosen: Candidate, rejected: Candidate, rule: PairRule) -> bool:
    """Equal rewards are no preference, whatever the limit."""
    difference = chosen.score - rejected.score
    return difference > 0 and meets(difference, rule.gap, rule.at_limit)


def sft_set(
    context: StepContext, ledger: pa.Table, reviewed: pa.Table, seed_reviews: pa.Table, earlier: pa.Table | None
) -> pa.Table:
    """D^s of this iteration: the replay that the settings ask for, rows of earlier iterations, accepted responses.

    ``earlier`` is the SFT set of the previous iteration; its replayed rows are not carried over, since the replay of
    this iteration takes their place. Equal (prompt, response) rows occur once, the oldest stays. Schema SFT_SET.
    """
    training = context.settings.training
    system = context.prompts.content.system
    rows = _replayed_seed(context, reviewed)
    if training.replay_reviews:
        rows += review_rows(context, seed_reviews)
    if earlier is not None and training.accumulate:
        rows += [row for row in earlier.to_pylist() if row["origin"] == "generated"]
    for row in ledger.to_pylist():
        if row["kept"] and row["kind"] == "response":
            rows.append(
                {
                    "row_id": row["row_id"],
                    "parent_ids": row["parent_ids"],
                    "seed_id": row["seed_id"],
                    "iteration": row["iteration"],
                    "origin": "generated",
                    "system": system,
                    "prompt": row["instruction"],
                    "response": row["response"],
                    "score": row["score"],
                    "model_digest": row["model_digest"],
                }
            )
    return table_of(_first_of_equals(rows, "prompt", "response"), SFT_SET)


def _replayed_seed(context: StepContext, reviewed: pa.Table) -> list[dict[str, Any]]:
    """Rows of Seed_0: none, those with a score of at least V, or all."""
    which = context.settings.training.replay_seed
    if which == "none":
        return []
    rows = [row for row in reviewed.to_pylist() if row["origin"] == "seed"]
    if which == "accepted":
        threshold = context.settings.construction.threshold
        rows = [row for row in rows if row["score"] is not None and reaches(row["score"], threshold)]
    return [_seed_row(row, context.prompts.content.system) for row in rows]


def initial_set(context: StepContext, seed_instructions: pa.Table, seed_reviews: pa.Table) -> pa.Table:
    """What M_0 is trained on: Seed_0, both parts (section 3.2). Schema SFT_SET."""
    system = context.prompts.content.system
    rows = [_seed_row({**row, "score": None}, system) for row in seed_instructions.to_pylist()]
    return table_of(rows + review_rows(context, seed_reviews), SFT_SET)


def review_rows(context: StepContext, seed_reviews: pa.Table) -> list[dict[str, Any]]:
    """The review seed as SFT rows: the filled review prompt, and the rationale with its score."""
    rows = []
    for row in seed_reviews.to_pylist():
        messages = context.prompts.messages("review", instruction=row["instruction"], response=row["response"])
        target = context.prompts.review_target(row["rationale"], row["score"])
        rows.append(
            {
                "row_id": row_id("review row", row["seed_id"], context.prompts.identity),
                "parent_ids": [row["seed_id"]],
                "seed_id": row["seed_id"],
                "iteration": SEED_ITERATION,
                "origin": "review",
                "system": context.prompts.content.system,
                "prompt": messages[-1]["content"],
                "response": target,
                "score": None,
                "model_digest": None,
            }
        )
    return rows


def preference_set(context: StepContext, ledger: pa.Table, reviewed: pa.Table, earlier: pa.Table | None) -> pa.Table:
    """D^p of this iteration: pairs of earlier iterations and those of this one. Schema PREFERENCE_SET.

    Raises ArtifactError where ``ledger`` was built from other reviews than ``reviewed``.
    """
    settings = context.settings
    system = context.prompts.content.system if settings.prompts.system_in_preferences else None
    rows: list[dict[str, Any]] = []
    if earlier is not None and settings.training.accumulate:
        rows += earlier.to_pylist()
    if settings.construction.pairs == "own_responses":
        new = _own_response_pairs(ledger, settings.construction)
    elif settings.construction.acceptance == "all":
        new = _unrewarded_pairs(ledger)
    else:
        new = _flawed_pairs(ledger, reviewed, settings.construction)
    for seed_id, prompt, pair in new:
        parents = [pair.chosen.row_id, pair.rejected.row_id]
        rows.append(
            {
                "row_id": row_id("pair", parents, context.iteration),
                "parent_ids": parents,
                "seed_id": seed_id,
                "iteration": context.iteration,
                "system": system,
                "prompt": prompt,
                "chosen": pair.chosen.response,
                "rejected": pair.rejected.response,
                "chosen_score": None if isnan(pair.chosen.score) else pair.chosen.score,
                "rejected_score": None if isnan(pair.rejected.score) else pair.rejected.score,
                "model_digest": context.runner.model_digest,
            }
        )
    return table_of(_first_of_equals(rows, "prompt", "chosen", "rejected"), PREFERENCE_SET)


PromptedPair = tuple[str, str, Pair]  # seed id, prompt, the two responses


def _flawed_pairs(ledger: pa.Table, reviewed: pa.Table, construction: ConstructionSettings) -> list[PromptedPair]:
    """The paper's pairs: a seed's response and the flawed ones, in the order of their rewards."""
    seeds = {row["seed_id"]: row for row in reviewed.to_pylist()}
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for row in ledger.to_pylist():
        if row["kept"] and row["kind"] == "flawed_response":
            _require_same_review(row, seeds.get(row["seed_id"]))
            groups[row["seed_id"]].append(Candidate.of_row(row))
    return [
        (seed_id, seeds[seed_id]["instruction"], pair)
        for seed_id, flawed in groups.items()
        for pair in preference_pairs(Candidate.of_seed(seeds[seed_id]), flawed, PairRule.of(construction))
    ]


def _unrewarded_pairs(ledger: pa.Table) -> list[PromptedPair]:
    """A control: the seed's response is preferred to every flawed one, whatever their rewards."""
    pairs = []
    for row in ledger.to_pylist():
        if row["kept"] and row["kind"] == "flawed_response":
            chosen = Candidate(row["seed_id"], row["original_response"], row["original_score"])
            pairs.append((row["seed_id"], row["instruction"], Pair(chosen, Candidate.of_row(row))))
    return pairs


def _own_response_pairs(ledger: pa.Table, construction: ConstructionSettings) -> list[PromptedPair]:
    """The best and the worst rewarded of the model's own responses to each new instruction.

    Rows below the acceptance score may be the rejected side: they are dropped from D^s, not from D^p. Where rewards
    do not count (``acceptance: all``) the first response is preferred to the last, an order that says nothing.
    """
    rule = replace(PairRule.of(construction), direction="reward", per_prompt="best")
    groups: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for row in ledger.to_pylist():
        if row["kind"] == "response" and row["stage"] == "acceptance":
            groups[(row["seed_id"], row["instruction"])].append(Candidate.of_row(row))
    if construction.acceptance == "all":
        return [(*key, Pair(own[0], own[-1])) for key, own in groups.items() if len(own) > 1]
    return [
        (seed_id, instruction, pair)
        for (seed_id, instruction), responses in groups.items()
        for pair in preference_pairs(None, [c for c in responses if not isnan(c.score)], rule)
    ]


def _require_same_review(row: dict[str, Any], seed: dict[str, Any] | None) -> None:
    if seed is None or seed["score"] != row["original_score"]:
        raise ArtifactError(
            f"candidate_ledger compares {row['row_id']} with seed {row['seed_id']} at a score of "
            f"{row['original_score']}, which is not what reviewed_seed says now: it was re-materialised since. "
            "Re-materialise the candidates and candidate_ledger of this iteration."
        )


def grown_seed(
    iteration: int,
    seed_instructions: pa.Table,
    growth: Literal["original", "merge", "merge_latest"],
    max_rows: int | None,
    *,
    sft: pa.Table | None = None,
    preferences: pa.Table | None = None,
    reviewed: pa.Table | None = None,
) -> list[dict[str, Any]]:
    """Seed_t: rows with seed_id, parent_ids, instruction, response and origin, as ``review_seed`` takes them.

    All tables are those of the previous iteration, None in iteration 0. ``sft``: its SFT set, for 'merge' and
    'merge_latest'. ``preferences``: its preference set, where rejected flawed rows re-enter. ``reviewed``: its reviewed
    seed, for 'merge', which keeps what had grown before. The cap keeps Seed_0 first, then the newest rows.
    """
    seed = [
        {
            "seed_id": row["seed_id"],
            "parent_ids": [],
            "instruction": row["instruction"],
            "response": row["response"],
            "origin": "seed",
        }
        for row in seed_instructions.to_pylist()
    ]
    if growth == "original":
        return seed[:max_rows]
    new = _accepted(sft) + _rejected(preferences)
    if growth == "merge_latest":
        new = [entry for entry in new if entry[0] == iteration - 1]
    new.sort(key=lambda entry: -entry[0])
    before = _grown_before(reviewed) if growth == "merge" else []
    return _first_of_equals([*seed, *(row for _, row in new), *before], "instruction", "response")[:max_rows]


def _accepted(sft: pa.Table | None) -> list[tuple[int, dict[str, Any]]]:
    """Accepted rows as seeds, with the iteration that wrote them."""
    rows = [] if sft is None else sft.to_pylist()
    return [
        (row["iteration"], _grown(row["row_id"], row["prompt"], row["response"]))
        for row in rows
        if row["origin"] == "generated"
    ]


def _rejected(preferences: pa.Table | None) -> list[tuple[int, dict[str, Any]]]:
    """Rejected flawed rows as seeds, likewise; a seed that lost against a flawed row is in Seed_t already."""
    rows = [] if preferences is None else preferences.to_pylist()
    return [
        (row["iteration"], _grown(row["parent_ids"][1], row["prompt"], row["rejected"]))
        for row in rows
        if row["parent_ids"][1] != row["seed_id"]
    ]


def _grown_before(reviewed: pa.Table | None) -> list[dict[str, Any]]:
    columns = ["seed_id", "parent_ids", "instruction", "response", "origin"]
    rows = [] if reviewed is None else reviewed.select(columns).to_pylist()
    return [row for row in rows if row["origin"] == "generated"]


def _grown(identity: str, instruction: str, response: str) -> dict[str, Any]:
    return {
        "seed_id": row_id("grown seed", identity),
        "parent_ids": [identity],
        "instruction": instruction,
        "response": response,
        "origin": "generated",
    }


def _seed_row(row: dict[str, Any], system: str | None) -> dict[str, Any]:
    return {
        "row_id": row_id("seed row", row["seed_id"]),
        "parent_ids": [row["seed_id"]],
        "seed_id": row["seed_id"],
        "iteration": SEED_ITERATION,
        "origin": "seed",
        "system": system,
        "prompt": row["instruction"],
        "response": row["response"],
        "score": row["score"],
        "model_digest": None,
    }


def _first_of_equals(rows: list[dict[str, Any]], *columns: str) -> list[dict[str, Any]]:
    """Rows without later repetitions of the same texts."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for row in rows:
        texts = tuple(row[column] for column in columns)
        if texts not in seen:
            seen.add(texts)
            kept.append(row)
    return kept

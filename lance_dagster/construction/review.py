"""Review (section 3.3 of the paper): the current model scores (instruction, response) pairs from 0 to 10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from lance_dagster.construction.steps import StepContext
from lance_dagster.prompts.parsing import mean_score, parse_rationale, parse_score
from lance_dagster.records import REVIEWED_SEED, table_of
from lance_dagster.settings import ConstructionSettings

Branch = Literal["instruction", "preference", "none"]
_ROUNDING = 1e-9  # scores are means: 25/3 is 2 above 19/3, but as floats a little more


@dataclass(frozen=True)
class Reward:
    """The reviews of one pair. A review that does not parse, or was cut off, has the score None: never 0.

    With fewer than ``needed`` that parse the pair has no score.
    """

    scores: list[float | None]
    rationales: list[str]
    finish_reasons: list[str]
    needed: int = 1

    @property
    def score(self) -> float | None:
        parsed = sum(score is not None for score in self.scores)
        return mean_score(self.scores) if parsed >= self.needed else None

    def columns(self) -> dict[str, Any]:
        """The reward columns of REVIEWED_SEED and CANDIDATE_LEDGER."""
        return {
            "scores": self.scores,
            "score": self.score,
            "rationales": self.rationales,
            "review_finish_reasons": self.finish_reasons,
        }


NO_REWARD = Reward([], [], [])


def review_pairs(context: StepContext, ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[Reward]:
    """Review each (instruction, response) pair ``reviews_per_item`` times with M_t."""
    construction = context.settings.construction
    times = construction.reviews_per_item
    keys = [(row, sample) for row in ids for sample in range(times)]
    fields = [{"instruction": i, "response": r} for i, r in pairs for _ in range(times)]
    completions, _ = context.ask("review", construction.review, keys, fields)
    rewards = []
    for start in range(0, len(completions), times):
        own = completions[start : start + times]
        whole = [completion.finish_reason == "stop" for completion in own]
        rewards.append(
            Reward(
                [parse_score(c.text) if done else None for c, done in zip(own, whole, strict=True)],
                [parse_rationale(c.text) for c in own],
                [c.finish_reason for c in own],
                construction.reviews_needed,
            )
        )
    return rewards


def branch_of(score: float | None, construction: ConstructionSettings) -> Branch:
    """Algorithm 1, line 3: a score of at least V leads to flawed responses, a lower one to new instructions."""
    if score is None:
        return "instruction" if construction.unreviewed_seeds == "instruction" else "none"
    if exceeds(score, construction.threshold):
        return "preference"
    return construction.branch_at_threshold if reaches(score, construction.threshold) else "instruction"


def exceeds(score: float, limit: float) -> bool:
    """``score > limit``, the rounding of means aside."""
    return score - limit > _ROUNDING


def meets(score: float, limit: float, at_limit: Literal["reject", "accept"]) -> bool:
    """Whether a score is enough, where one that equals the limit is or is not."""
    return exceeds(score, limit) if at_limit == "reject" else reaches(score, limit)


def reaches(score: float, limit: float) -> bool:
    """``score >= limit``, the rounding of means aside."""
    return not exceeds(limit, score)


def review_seed(context: StepContext, seed: Sequence[dict[str, Any]], known: pa.Table | None = None) -> pa.Table:
    """Review Seed_t. Rows of ``seed`` have seed_id, parent_ids, instruction, response and origin.

    With ``known`` (the previous reviewed seed, for ``rereview_seeds: false``) only rows that it lacks are reviewed,
    and the others keep the score, and the name of the model that gave it.
    """
    earlier = {row["seed_id"]: row for row in known.to_pylist()} if known is not None else {}
    new = [row for row in seed if row["seed_id"] not in earlier]
    rewards = dict(
        zip(
            [row["seed_id"] for row in new],
            review_pairs(context, [r["seed_id"] for r in new], [(r["instruction"], r["response"]) for r in new]),
            strict=True,
        )
    )
    rows = []
    for row in seed:
        if row["seed_id"] in earlier:
            reviewed = earlier[row["seed_id"]]
        else:
            reviewed = {**row, **context.provenance(), **rewards[row["seed_id"]].columns()}
        rows.append({**reviewed, "branch": branch_of(reviewed["score"], context.settings.construction)})
    return table_of(rows, REVIEWED_SEED)

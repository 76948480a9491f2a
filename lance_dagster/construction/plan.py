"""What the coming iteration will take, from a small preview: calls and tokens of each stage.

The preview is real work of that iteration on a few seeds, kept in the cache, so nothing of it is done twice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from lance_dagster.construction.review import review_pairs, review_seed
from lance_dagster.construction.steps import StepContext
from lance_dagster.errors import SeedError
from lance_dagster.methods.method import Method


class Expected(NamedTuple):
    """One stage of an iteration."""

    stage: str
    calls: int
    prompt_tokens: int
    completion_tokens: int


def expected_iteration(
    context: StepContext, method: Method, seeds: Sequence[dict[str, Any]], preview: int
) -> list[Expected]:
    """Construct from ``preview`` seeds drawn at random, up to the rewards, and scale it to all ``seeds``.

    Rows that the cheap filters would drop before the reward are counted as rewarded, so that stage is an upper bound.
    Raises SeedError where there is no seed.
    """
    if not seeds:
        raise SeedError("there is no seed row to plan with; materialise seed_instructions")
    rows = random.Random(0).sample(list(seeds), min(preview, len(seeds)))
    usage, scale, stages = context.runner.usage, len(seeds) / len(rows), []
    counted = [0, 0, 0]

    def measured(stage: str) -> None:
        total = [usage.requests, usage.answered_prompt_tokens, usage.answered_completion_tokens]
        stages.append(Expected(stage, *(round((now - then) * scale) for now, then in zip(total, counted, strict=True))))
        counted[:] = total

    reviewed = review_seed(context, rows)
    measured("reviewed_seed")
    instructions = method.instruction_candidates(context, reviewed)
    measured("instruction_candidates")
    flawed = method.preference_candidates(context, reviewed)
    measured("preference_candidates")
    candidates = pa.concat_tables([instructions, flawed]).to_pylist()
    rewarded = [row for row in candidates if row["kind"] != "instruction" and row["drop_reason"] is None]
    review_pairs(context, [row["row_id"] for row in rewarded], [(r["instruction"], r["response"]) for r in rewarded])
    measured("candidate_ledger")
    return stages

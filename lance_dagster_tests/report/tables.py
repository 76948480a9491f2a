"""Small tables of the real schemas, to build reports from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from lance_dagster import records
from lance_dagster.report.summary import IterationTables, Summary, build_summary

WHO = {"iteration": 0, "method": "lance", "model_digest": "m0", "prompt_template": "lance_v1"}
REWARD: dict[str, Any] = {"scores": [], "score": None, "rationales": [], "review_finish_reasons": []}

Value = float | tuple[float, float | None]


def scores(stage: str, values: Mapping[str, Value], iteration: int = -1, **changes: Any) -> list[dict[str, Any]]:
    """EVAL_SCORES rows from {task or "task:metric": value or (value, stderr)}; the standard error is 0.03 if unset."""
    rows = []
    for name, value in values.items():
        task, _, metric = name.partition(":")
        number, stderr = value if isinstance(value, tuple) else (value, 0.03)
        row = {
            "stage": stage,
            "iteration": iteration,
            "model_digest": f"digest_{stage}_{iteration}",
            "task": task,
            "metric": metric or "exact_match",
            "value": number,
            "stderr": stderr,
            "documents": 100,
        }
        rows.append({**row, **changes})
    return rows


def score_table(*rows: list[dict[str, Any]]) -> pa.Table:
    return records.table_of([row for group in rows for row in group], records.EVAL_SCORES)


def baseline(base: float, initial: float, again: float, task: str = "mini_test", **changes: Any) -> pa.Table:
    """Baseline scores of one task."""
    values: dict[str, float] = {"base": base, "initial": initial, "initial_again": again}
    return score_table(*(scores(stage, {task: value}, **changes) for stage, value in values.items()))


def seed(score: float | None, reviews: Sequence[float | None], branch: str, number: int = 0) -> dict[str, Any]:
    return {
        "seed_id": f"seed_{number}",
        "parent_ids": [],
        "instruction": f"Add {number} and 2.",
        "response": str(number + 2),
        "origin": "seed",
        **WHO,
        "scores": list(reviews),
        "score": score,
        "rationales": ["fine"] * len(reviews),
        "review_finish_reasons": ["stop"] * len(reviews),
        "branch": branch,
    }


def candidate(
    kind: str, drop_reason: str | None = None, score: float | None = None, number: int = 0, **changes: Any
) -> dict[str, Any]:
    row = {
        "row_id": f"{kind}_{number}",
        "parent_ids": ["seed_0"],
        "seed_id": "seed_0",
        "kind": kind,
        "instruction": f"What is {number} + 2?",
        "response": None if kind == "instruction" else str(number + 2),
        **WHO,
        "sampling": {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 32, "seed": 0},
        "finish_reason": "stop",
        "error": None,
        "attempts": None,
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "drop_reason": drop_reason,
        "original_response": None,
        "original_score": None,
        "contaminated": None,
        "rouge_l": None,
        "rouge_l_against": None,
        **REWARD,
        "score": score,
        "stage": "reward",
        "kept": drop_reason is None,
    }
    return {**row, **changes}


def sft_row(iteration: int, number: int = 0, **changes: Any) -> dict[str, Any]:
    row = {
        "row_id": f"sft_{iteration}_{number}",
        "parent_ids": [],
        "seed_id": "seed_0",
        "iteration": iteration,
        "origin": "generated",
        "system": None,
        "prompt": f"What is {number} + 2?",
        "response": str(number + 2),
        "score": 9.0,
        "model_digest": "m0",
    }
    return {**row, **changes}


def pair(iteration: int, number: int = 0, **changes: Any) -> dict[str, Any]:
    row = {
        "row_id": f"pair_{iteration}_{number}",
        "parent_ids": ["a", "b"],
        "seed_id": "seed_0",
        "iteration": iteration,
        "system": None,
        "prompt": f"What is {number} + 2?",
        "chosen": str(number + 2),
        "rejected": str(number + 3),
        "chosen_score": 9.0,
        "rejected_score": 3.0,
        "model_digest": "m0",
    }
    return {**row, **changes}


def drift(iteration: int, against: str = "base", kl: float = 0.02) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "model_digest": "m1",
        "against": against,
        "against_digest": "m",
        "kl": kl,
        "weight_distance": 0.013,
        "response_nll": 1.25,
        "rows": 128,
    }


def iteration(
    number: int = 0,
    evaluated: pa.Table | None = None,
    seeds: Sequence[dict[str, Any]] = (),
    ledger: Sequence[dict[str, Any]] = (),
    sft: Sequence[dict[str, Any]] = (),
    pairs: Sequence[dict[str, Any]] = (),
    drifts: Sequence[dict[str, Any]] = (),
) -> IterationTables:
    if evaluated is None:
        evaluated = after(number, sft=0.5, dpo=0.5)
    return IterationTables(
        iteration=number,
        reviewed_seed=records.table_of(list(seeds), records.REVIEWED_SEED),
        candidate_ledger=records.table_of(list(ledger), records.CANDIDATE_LEDGER),
        sft_set=records.table_of(list(sft), records.SFT_SET),
        preference_set=records.table_of(list(pairs), records.PREFERENCE_SET),
        eval_scores=evaluated,
        drift=records.table_of(list(drifts), records.DRIFT),
    )


def after(number: int, sft: Value, dpo: Value, task: str = "mini_test", **changes: Any) -> pa.Table:
    """Evaluation of one iteration on one task."""
    return score_table(scores("sft", {task: sft}, number, **changes), scores("dpo", {task: dpo}, number, **changes))


def evolution(
    base: float = 0.60,
    initial: float = 0.50,
    again: float = 0.51,
    last: Sequence[Value] = (0.55, 0.62),
    experiment: str = "mini",
    notes: Sequence[str] = (),
    **parts: Any,
) -> Summary:
    """A whole summary: one iteration per value of ``last``, each holding ``parts``."""
    iterations = [iteration(t, after(t, sft=0.5, dpo=value), **parts) for t, value in enumerate(last)]
    return build_summary(experiment, "lance", baseline(base, initial, again), iterations, notes)

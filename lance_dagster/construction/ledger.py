"""The candidate ledger: every generated row, how far it came, and why it was dropped (section 3.3, filtering).

Rows pass the steps in this order, cheap ones first: generated, length, rouge_l, contamination, reward, acceptance.
``stage`` is the last step a row reached, ``drop_reason`` why it went no further. Nothing leaves the table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from lance_dagster.construction.assemble import Candidate, preference_pairs
from lance_dagster.construction.filters import rules
from lance_dagster.construction.filters.contamination import CONTAMINATED, EvaluationQuestions
from lance_dagster.construction.filters.rouge_l import RougeL
from lance_dagster.construction.review import NO_REWARD, exceeds, review_pairs
from lance_dagster.construction.steps import StepContext
from lance_dagster.errors import ArtifactError
from lance_dagster.records import CANDIDATE_LEDGER, table_of
from lance_dagster.settings import FilterSettings

PARENT_DROPPED, DUPLICATE, SIMILAR = "parent_dropped", "duplicate", "similar"
NO_REVIEW, BELOW_ACCEPTANCE, NO_PREFERENCE_GAP = "no_review", "below_acceptance", "no_preference_gap"
OVER_SEED_CAP, OVER_ITERATION_CAP = "over_seed_cap", "over_iteration_cap"

Row = dict[str, Any]


def build_ledger(
    context: StepContext,
    instruction_candidates: pa.Table,
    preference_candidates: pa.Table,
    reviewed: pa.Table,
    questions: EvaluationQuestions,
) -> pa.Table:
    """Filter, reward and accept all candidates of one iteration. Schema CANDIDATE_LEDGER.

    Raises ArtifactError where candidates were generated from another ``reviewed`` than this one.
    """
    seeds = {row["seed_id"]: row for row in reviewed.to_pylist()}
    rows = [_opened(row, seeds) for row in instruction_candidates.to_pylist() + preference_candidates.to_pylist()]
    filters = context.settings.construction.filters
    _drop_each(rows, "length", lambda row: _length(row, filters))
    _drop_orphans(rows, "length")
    _drop_similar_instructions(rows, seeds, filters)
    _drop_orphans(rows, "rouge_l")
    _drop_similar_responses(rows, seeds, filters)
    if filters.contamination == "drop":  # a response carries its instruction, so it goes by itself
        _drop_each(rows, "contamination", lambda row: CONTAMINATED if row["instruction"] in questions else None)
    _reward(context, rows)
    _accept_responses(context, rows)
    _accept_flawed(context, rows, seeds)
    for row in rows:
        row["kept"] = row["drop_reason"] is None
    return table_of(rows, CANDIDATE_LEDGER)


def funnel(ledger: pa.Table) -> dict[str, int]:
    """Counts by kind and fate, with stable keys: ``response/generated``, ``response/kept``, ``response/similar`` …"""
    counts: dict[str, int] = defaultdict(int)
    for kind, reason in zip(ledger["kind"].to_pylist(), ledger["drop_reason"].to_pylist(), strict=True):
        counts[f"{kind}/generated"] += 1
        counts[f"{kind}/{reason or 'kept'}"] += 1
    return dict(sorted(counts.items()))


def _opened(row: Row, seeds: dict[str, Row]) -> Row:
    flawed = row["kind"] == "flawed_response"
    seed = seeds.get(row["seed_id"])
    if seed is None or seed["branch"] != ("preference" if flawed else "instruction"):
        fate = "is no longer in it" if seed is None else f"now takes the branch {seed['branch']!r}"
        raise ArtifactError(
            f"{row['kind']} {row['row_id']} was generated from seed {row['seed_id']}, which {fate}: reviewed_seed was "
            "re-materialised since. Re-materialise instruction_candidates and preference_candidates of this iteration."
        )
    return {
        **row,
        "original_response": seed["response"] if flawed else None,
        "original_score": seed["score"] if flawed else None,
        "rouge_l": None,
        "rouge_l_against": None,
        **NO_REWARD.columns(),
        "stage": "generated",
        "kept": False,
    }


def _alive(rows: Iterable[Row], *kinds: str) -> list[Row]:
    return [row for row in rows if row["drop_reason"] is None and (not kinds or row["kind"] in kinds)]


def _drop_each(rows: list[Row], stage: str, why: Callable[[Row], str | None]) -> None:
    for row in _alive(rows):
        row["stage"] = stage
        row["drop_reason"] = why(row)


def _length(row: Row, filters: FilterSettings) -> str | None:
    if row["kind"] == "instruction":
        return rules.instruction_length(row["instruction"], filters.instruction_words)
    return rules.response_length(row["response"], filters.response_words)


def _drop_orphans(rows: list[Row], stage: str) -> None:
    """A response goes with its instruction, at the step at which that one was dropped."""
    dropped = {row["row_id"] for row in rows if row["kind"] == "instruction" and row["drop_reason"] is not None}
    for row in _alive(rows, "response"):
        if row["parent_ids"][0] in dropped:
            row["stage"] = stage
            row["drop_reason"] = PARENT_DROPPED


def _drop_similar_instructions(rows: list[Row], seeds: dict[str, Row], filters: FilterSettings) -> None:
    """ROUGE-L against the seed's instruction and earlier siblings, or against all seeds and earlier candidates."""
    instructions = _alive(rows, "instruction")
    if filters.rouge_scope == "iteration":
        pool = [(seed["seed_id"], seed["instruction"]) for seed in seeds.values()]
        _thin(instructions, "instruction", pool, filters, filters.rouge_threshold)
        return
    by_seed: dict[str, list[Row]] = defaultdict(list)
    for row in instructions:
        by_seed[row["seed_id"]].append(row)
    for seed_id, group in by_seed.items():
        _thin(group, "instruction", [(seed_id, seeds[seed_id]["instruction"])], filters, filters.rouge_threshold)


def _drop_similar_responses(rows: list[Row], seeds: dict[str, Row], filters: FilterSettings) -> None:
    """ROUGE-L against the seed's response and earlier responses to the same instruction."""
    by_prompt: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in _alive(rows, "response", "flawed_response"):
        by_prompt[(row["seed_id"], row["instruction"])].append(row)
    threshold = filters.rouge_threshold if filters.rouge_responses else None
    for (seed_id, _), group in by_prompt.items():
        _thin(group, "response", [(seed_id, seeds[seed_id]["response"])], filters, threshold)


def _thin(
    group: list[Row], column: str, pool: list[tuple[str, str]], filters: FilterSettings, threshold: float | None
) -> None:
    """Keep the first of similar rows. Exact repetitions, white space aside, go in any case; a threshold of None drops
    nothing else.

    ``pool``: (row id, text) of what was there before. A response may repeat its seed's response only where it
    answers another instruction.
    """
    rouge = RougeL(filters.rouge_statistic)
    ids = []
    seen: set[str] = set()
    for identity, text in pool:
        rouge.add(text)
        ids.append(identity)
        if column == "instruction" or group[0]["kind"] == "flawed_response":
            seen.add(_folded(text))
    for row in group:
        text, folded = row[column], _folded(row[column])
        row["stage"] = "rouge_l"
        if folded in seen:
            row["drop_reason"] = DUPLICATE
            continue
        if threshold is not None:
            value, position = rouge.most_similar(text)
            row["rouge_l"], row["rouge_l_against"] = value, None if position is None else ids[position]
            if value > threshold:
                row["drop_reason"] = SIMILAR
                continue
            rouge.add(text)
            ids.append(row["row_id"])
        seen.add(folded)


def _folded(text: str) -> str:
    return " ".join(text.split())


def _reward(context: StepContext, rows: list[Row]) -> None:
    """M_t rewards every response and flawed response that is left."""
    left = _alive(rows, "response", "flawed_response")
    pairs = [(row["instruction"], row["response"]) for row in left]
    for row, reward in zip(left, review_pairs(context, [row["row_id"] for row in left], pairs), strict=True):
        row.update(reward.columns(), stage="reward")
        if reward.score is None and context.settings.construction.acceptance == "reward":
            row["drop_reason"] = NO_REVIEW


def _accept_responses(context: StepContext, rows: list[Row]) -> None:
    """SFT rows need a reward above the acceptance score, then the caps take the best."""
    construction = context.settings.construction
    for row in _alive(rows, "response"):
        row["stage"] = "acceptance"
        if construction.acceptance == "reward" and not exceeds(row["score"], construction.accept_above):
            row["drop_reason"] = BELOW_ACCEPTANCE
    _cap(context, _alive(rows, "response"), lambda row: row["score"] or 0.0)


def _accept_flawed(context: StepContext, rows: list[Row], seeds: dict[str, Row]) -> None:
    """A flawed response is kept where it forms a pair, with the original or with another flawed one."""
    flawed = _alive(rows, "flawed_response")
    for row in flawed:
        row["stage"] = "acceptance"
    if context.settings.construction.acceptance == "all":
        _cap(context, flawed, lambda row: 0.0)
        return
    _cap(context, flawed, lambda row: abs(row["original_score"] - row["score"]))
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in _alive(flawed):
        groups[row["seed_id"]].append(row)
    for seed_id, group in groups.items():
        candidates = [Candidate.of_seed(seeds[seed_id]), *(Candidate.of_row(row) for row in group)]
        pairs = preference_pairs(candidates, context.settings.construction.preference_gap)
        paired = {candidate.row_id for pair in pairs for candidate in (pair.chosen, pair.rejected)}
        for row in group:
            if row["row_id"] not in paired:
                row["drop_reason"] = NO_PREFERENCE_GAP


def _cap(context: StepContext, rows: list[Row], merit: Callable[[Row], float]) -> None:
    """Keep the rows of the highest merit, ties in the order of generation."""
    construction = context.settings.construction
    best = sorted(rows, key=merit, reverse=True)
    per_seed: dict[str, int] = defaultdict(int)
    total = 0
    for row in best:
        if construction.max_rows_per_seed is not None and per_seed[row["seed_id"]] >= construction.max_rows_per_seed:
            row["drop_reason"] = OVER_SEED_CAP
        elif construction.max_rows_per_iteration is not None and total >= construction.max_rows_per_iteration:
            row["drop_reason"] = OVER_ITERATION_CAP
        else:
            per_seed[row["seed_id"]] += 1
            total += 1

"""The candidate ledger: every generated row, how far it came, and why it was dropped (section 3.3).

Rows pass the steps in this order, cheap ones first: generated, text, duplicate, contamination, rouge_l, reward,
acceptance. ``stage`` is the last step a row reached, ``drop_reason`` why it went no further. Nothing leaves the table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.construction.acceptance import Rewarded, accept
from lance_dagster.construction.fates import Fates
from lance_dagster.construction.filter_stage import RowSource, SeedTexts, Similarity, filter_candidates
from lance_dagster.construction.filters.contamination import EvaluationIndex
from lance_dagster.construction.filters.ray_shelves import RayShelves
from lance_dagster.construction.filters.rules import Rules
from lance_dagster.construction.filters.shelves import InMemory, Shelves
from lance_dagster.construction.review import NO_REWARD, Reward, review_pairs
from lance_dagster.construction.steps import StepContext
from lance_dagster.engines.ray_cluster import join_cluster
from lance_dagster.errors import ArtifactError
from lance_dagster.records import CANDIDATE_LEDGER, CANDIDATES, checked

_BATCH_ROWS = 4096


class Ledger(NamedTuple):
    """``rows`` has schema CANDIDATE_LEDGER, ``hits`` CONTAMINATION_HITS.

    ``unseen``: texts with letters that the rule of tokenisation of ROUGE-L overlooks.
    """

    rows: pa.Table
    hits: pa.Table
    unseen: int


def build_ledger(
    context: StepContext,
    instruction_candidates: pa.Table,
    preference_candidates: pa.Table,
    reviewed: pa.Table,
    evaluation: EvaluationIndex,
    earlier: pa.Table | None = None,
) -> Ledger:
    """Filter, reward and accept all candidates of one iteration.

    ``earlier``: for ``rouge_scope: all`` the index of the iteration before, schema ROUGE_INDEX. Raises ArtifactError
    where candidates were generated from another ``reviewed`` than this one.
    """
    candidates = pa.concat_tables([instruction_candidates, preference_candidates]).select(CANDIDATES.names)
    settings = context.settings
    seeds = seed_texts(reviewed)
    _require_same_seeds(candidates, reviewed)
    rules = Rules(settings.construction.filters)
    with ExitStack() as stack:
        filtered = filter_candidates(
            rows_of(candidates),
            candidates.num_rows,
            seeds,
            settings.construction.filters,
            rules,
            evaluation,
            earlier,
            _shelves(context, stack),
        )
    fates = filtered.fates
    rewards = _rewards(context, candidates, fates)
    columns = {
        **{name: candidates[name] for name in CANDIDATES.names if name != "drop_reason"},
        **_originals(candidates, reviewed),
        "contaminated": filtered.contaminated,
        **_similarity_columns(filtered.similarity),
        **_reward_columns(rewards),
    }
    rewarded = pa.table({name: columns[name] for name in Rewarded._fields})
    accept(Rewarded.of(rewarded), fates, settings.construction)
    columns |= {"stage": fates.stage_column(), "drop_reason": fates.reason_column(), "kept": pa.array(fates.alive)}
    table = pa.table([_cast(columns[field.name], field) for field in CANDIDATE_LEDGER], schema=CANDIDATE_LEDGER)
    return Ledger(checked(table, CANDIDATE_LEDGER), filtered.hits, filtered.unseen)


def _shelves(context: StepContext, stack: ExitStack) -> Shelves:
    """Where the rows lie that ROUGE-L compares all others with."""
    settings = context.settings
    if not settings.engine.ray.rouge_join or settings.construction.filters.rouge_scope == "seed":
        return InMemory()
    join_cluster(settings.engine.ray, stack)
    context.log("ROUGE-L is compared on the Ray cluster of engine.ray")
    return RayShelves(settings.engine.ray, context.log)


def funnel(ledger: pa.Table) -> dict[str, int]:
    """Counts by kind and fate, with stable keys: ``response/generated``, ``response/kept``, ``response/similar`` …"""
    counts: dict[str, int] = defaultdict(int)
    for kind, reason in zip(ledger["kind"].to_pylist(), ledger["drop_reason"].to_pylist(), strict=True):
        counts[f"{kind}/generated"] += 1
        counts[f"{kind}/{reason or 'kept'}"] += 1
    return dict(sorted(counts.items()))


def seed_texts(reviewed: pa.Table) -> dict[str, SeedTexts]:
    """What candidates are compared with, by seed."""
    columns = (reviewed[name].to_pylist() for name in ("seed_id", "instruction", "response"))
    return {seed: SeedTexts(instruction, response) for seed, instruction, response in zip(*columns, strict=True)}


def rows_of(table: pa.Table) -> RowSource:
    """A table that is read batch by batch."""

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from table.select(list(columns)).to_batches(max_chunksize=_BATCH_ROWS)

    return batches


def _require_same_seeds(candidates: pa.Table, reviewed: pa.Table) -> None:
    branches = dict(zip(reviewed["seed_id"].to_pylist(), reviewed["branch"].to_pylist(), strict=True))
    for row in candidates.select(["kind", "seed_id"]).group_by(["kind", "seed_id"]).aggregate([]).to_pylist():
        branch = branches.get(row["seed_id"])
        if branch != ("preference" if row["kind"] == "flawed_response" else "instruction"):
            fate = "is no longer in it" if branch is None else f"now takes the branch {branch!r}"
            of_kind = pc.and_(
                pc.equal(candidates["kind"], row["kind"]), pc.equal(candidates["seed_id"], row["seed_id"])
            )
            raise ArtifactError(
                f"{row['kind']} {candidates.filter(of_kind)['row_id'][0]} was generated from seed {row['seed_id']}, "
                f"which {fate}: reviewed_seed was re-materialised since. Re-materialise instruction_candidates and "
                "preference_candidates of this iteration."
            )


def _rewards(context: StepContext, candidates: pa.Table, fates: Fates) -> list[Reward]:
    """M_t rewards every response and flawed response that is left."""
    rewards = [NO_REWARD] * len(fates)
    wanted = np.flatnonzero(fates.alive & pc.not_equal(candidates["kind"], "instruction").to_numpy())
    rows = candidates.select(["row_id", "instruction", "response"]).take(pa.array(wanted)).to_pylist()
    pairs = [(row["instruction"], row["response"]) for row in rows]
    fates.reach("reward", wanted)
    for position, reward in zip(
        wanted.tolist(), review_pairs(context, [row["row_id"] for row in rows], pairs), strict=True
    ):
        rewards[position] = reward
    return rewards


def _originals(candidates: pa.Table, reviewed: pa.Table) -> dict[str, pa.ChunkedArray]:
    """For flawed responses, the response and the score of their seed."""
    seed = pc.index_in(candidates["seed_id"], value_set=reviewed["seed_id"].combine_chunks())
    flawed = pc.if_else(pc.equal(candidates["kind"], "flawed_response"), seed, None)
    return {"original_response": reviewed["response"].take(flawed), "original_score": reviewed["score"].take(flawed)}


def _similarity_columns(similarity: Similarity) -> dict[str, pa.Array]:
    return {
        "rouge_l": pa.array(similarity.value, mask=np.isnan(similarity.value)),
        "rouge_l_against": pa.array(similarity.against, type=pa.string()),
    }


def _reward_columns(rewards: Sequence[Reward]) -> dict[str, pa.Array]:
    rows = [reward.columns() for reward in rewards]
    return {
        name: pa.array([row[name] for row in rows], type=CANDIDATE_LEDGER.field(name).type)
        for name in NO_REWARD.columns()
    }


def _cast(column: Any, field: pa.Field) -> pa.ChunkedArray:
    return (column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])).cast(field.type)

"""The funnel of one iteration: from the seeds read to the rows that were trained on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

KINDS = ("instruction", "response", "flawed_response")
BRANCHES = ("instruction", "preference", "none")


@dataclass(frozen=True)
class Count:
    """A number of rows under a name."""

    name: str
    rows: int


@dataclass(frozen=True)
class KindFunnel:
    """Candidates of one kind: generated = kept + all dropped. ``dropped`` has the most frequent reason first."""

    kind: str
    generated: int
    dropped: tuple[Count, ...]
    kept: int


@dataclass(frozen=True)
class Funnel:
    """One iteration. Scores and rewards are means in 0..10, None where there is nothing to average.

    ``reviews`` counts the review samples of the seeds, ``reviews_parsed`` those that gave a score; ``*_new`` are the
    rows that this iteration wrote, ``sft_rows`` and ``pairs`` all rows of the set.
    """

    iteration: int
    seeds: int
    reviews: int
    reviews_parsed: int
    reviews_parsed_share: float | None
    branches: tuple[Count, ...]
    mean_seed_score: float | None
    kinds: tuple[KindFunnel, ...]
    mean_kept_reward: float | None
    sft_rows_new: int
    sft_rows: int
    pairs_new: int
    pairs: int


def build_funnel(
    iteration: int, reviewed_seed: pa.Table, ledger: pa.Table, sft_set: pa.Table, preference_set: pa.Table
) -> Funnel:
    """Count one iteration. Raises ValueError naming iteration and kind where the numbers do not add up."""
    reviews = pc.list_flatten(reviewed_seed["scores"])
    parsed = len(reviews) - reviews.null_count
    branches = Counter(reviewed_seed["branch"].to_pylist())
    _refuse_unknown(iteration, "branch", branches.keys() - set(BRANCHES))
    kept_responses = ledger.filter(pc.and_(pc.equal(ledger["kind"], "response"), ledger["kept"]))
    return Funnel(
        iteration=iteration,
        seeds=reviewed_seed.num_rows,
        reviews=len(reviews),
        reviews_parsed=parsed,
        reviews_parsed_share=parsed / len(reviews) if len(reviews) else None,
        branches=tuple(Count(branch, branches[branch]) for branch in BRANCHES),
        mean_seed_score=pc.mean(reviewed_seed["score"]).as_py(),
        kinds=kind_funnels(iteration, ledger),
        mean_kept_reward=pc.mean(kept_responses["score"]).as_py(),
        sft_rows_new=_new(sft_set, iteration),
        sft_rows=sft_set.num_rows,
        pairs_new=_new(preference_set, iteration),
        pairs=preference_set.num_rows,
    )


def kind_funnels(iteration: int, ledger: pa.Table) -> tuple[KindFunnel, ...]:
    """Count the rows of a ledger by kind and fate. Raises ValueError where the numbers do not add up."""
    _refuse_unknown(iteration, "kind", set(ledger["kind"].unique().to_pylist()) - set(KINDS))
    return tuple(_kind_funnel(iteration, kind, ledger) for kind in KINDS)


def _kind_funnel(iteration: int, kind: str, ledger: pa.Table) -> KindFunnel:
    rows = ledger.filter(pc.equal(ledger["kind"], kind))
    reasons = Counter(reason for reason in rows["drop_reason"].to_pylist() if reason is not None)
    kept = pc.sum(rows["kept"], min_count=0).as_py()
    if rows.num_rows != kept + reasons.total():
        raise ValueError(
            f"candidate_ledger of iteration {iteration:03d}, kind {kind}: {rows.num_rows} generated, but {kept} kept "
            f"and {reasons.total()} dropped with a reason; a row is kept or has a drop_reason, never both or neither"
        )
    dropped = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return KindFunnel(kind, rows.num_rows, tuple(Count(*item) for item in dropped), kept)


def _new(rows: pa.Table, iteration: int) -> int:
    return int(pc.sum(pc.equal(rows["iteration"], iteration), min_count=0).as_py())


def _refuse_unknown(iteration: int, column: str, values: set[str]) -> None:
    if values:
        names = ", ".join(sorted(values))
        raise ValueError(f"iteration {iteration:03d}: unknown {column} {names}; report/funnel.py lists the known ones")

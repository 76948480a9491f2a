"""Acceptance (section 3.3, training data construction): which rewarded rows become training data, and why not others.

It needs no text, only who wrote what for which seed and the rewards, so that a what-if can do it again at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lance_dagster.construction.assemble import Candidate, PairRule, preference_pairs
from lance_dagster.construction.fates import Fates
from lance_dagster.construction.filters.words import Ints
from lance_dagster.construction.review import meets
from lance_dagster.settings import ConstructionSettings

NO_REVIEW, BELOW_ACCEPTANCE, NO_PREFERENCE_GAP = "no_review", "below_acceptance", "no_preference_gap"
OVER_SEED_CAP, OVER_ITERATION_CAP = "over_seed_cap", "over_iteration_cap"


class Rewarded(NamedTuple):
    """Columns of the rows: one entry per row of the ledger."""

    kind: list[str]
    seed_id: list[str]
    score: list[float | None]
    original_score: list[float | None]  # of the seed's response, for flawed responses

    @classmethod
    def of(cls, ledger: pa.Table) -> Rewarded:
        return cls(*(ledger[name].to_pylist() for name in cls._fields))


def accept(rows: Rewarded, fates: Fates, construction: ConstructionSettings) -> None:
    """Drop what is not accepted of the responses and flawed responses that are left."""
    left = np.flatnonzero(fates.alive)
    responses = [i for i in left.tolist() if rows.kind[i] == "response"]
    flawed = [i for i in left.tolist() if rows.kind[i] == "flawed_response"]
    if construction.acceptance == "reward":
        for group in (responses, flawed):
            missing = [i for i in group if rows.score[i] is None]
            fates.drop("reward", _positions(missing), NO_REVIEW)
        responses = [i for i in responses if rows.score[i] is not None]
        flawed = [i for i in flawed if rows.score[i] is not None]
    fates.reach("acceptance", _positions(responses + flawed))
    _accept_responses(rows, responses, fates, construction)
    _accept_flawed(rows, flawed, fates, construction)


def _accept_responses(rows: Rewarded, responses: list[int], fates: Fates, construction: ConstructionSettings) -> None:
    """SFT rows need a reward above the acceptance score, then the caps take the best."""
    if construction.acceptance == "reward":
        low = {
            i for i in responses if not meets(_known(rows.score[i]), construction.accept_above, construction.at_limit)
        }
        fates.drop("acceptance", _positions(sorted(low)), BELOW_ACCEPTANCE)
        responses = [i for i in responses if i not in low]
    _cap(rows, responses, lambda i: rows.score[i] or 0.0, fates, construction)


def _accept_flawed(rows: Rewarded, flawed: list[int], fates: Fates, construction: ConstructionSettings) -> None:
    """A flawed response is kept where it forms a pair, with the original or with another flawed one."""
    if construction.acceptance == "all":
        _cap(rows, flawed, lambda i: 0.0, fates, construction)
        return
    _cap(rows, flawed, lambda i: abs(_known(rows.original_score[i]) - _known(rows.score[i])), fates, construction)
    rule = PairRule.of(construction)
    groups: dict[str, list[int]] = defaultdict(list)
    for i in flawed:
        if fates.alive[i]:
            groups[rows.seed_id[i]].append(i)
    unpaired: list[int] = []
    for group in groups.values():
        original = Candidate("original", "", _known(rows.original_score[group[0]]))
        others = [Candidate(str(i), "", _known(rows.score[i])) for i in group]
        paired = {c.row_id for pair in preference_pairs(original, others, rule) for c in (pair.chosen, pair.rejected)}
        unpaired += [i for i in group if str(i) not in paired]
    fates.drop("acceptance", _positions(unpaired), NO_PREFERENCE_GAP)


def _cap(
    rows: Rewarded,
    left: Sequence[int],
    merit: Callable[[int], float],
    fates: Fates,
    construction: ConstructionSettings,
) -> None:
    """Keep the rows of the highest merit, ties in the order of generation."""
    if construction.max_rows_per_seed is None and construction.max_rows_per_iteration is None:
        return
    per_seed: dict[str, int] = defaultdict(int)
    total = 0
    dropped: dict[str, list[int]] = {OVER_SEED_CAP: [], OVER_ITERATION_CAP: []}
    for i in sorted(left, key=merit, reverse=True):
        if construction.max_rows_per_seed is not None and per_seed[rows.seed_id[i]] >= construction.max_rows_per_seed:
            dropped[OVER_SEED_CAP].append(i)
        elif construction.max_rows_per_iteration is not None and total >= construction.max_rows_per_iteration:
            dropped[OVER_ITERATION_CAP].append(i)
        else:
            per_seed[rows.seed_id[i]] += 1
            total += 1
    for reason, over in dropped.items():
        fates.drop("acceptance", _positions(over), reason)


def _positions(rows: list[int]) -> Ints:
    return np.array(rows, dtype=np.int64)


def _known(score: float | None) -> float:
    assert score is not None  # rows without a score are dropped before
    return score

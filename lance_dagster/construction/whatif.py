"""What another threshold would have kept: the filters' last steps done again on a ledger, without a model call.

Rows that the cheap steps dropped stay dropped, since no threshold here decides about them. The others are compared
anew under each ROUGE-L threshold, and accepted anew by the rewards that the ledger holds. A row that ROUGE-L dropped
then and would let pass now was never reviewed: it counts as ``never_reviewed``, not as kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.construction.acceptance import Rewarded, accept
from lance_dagster.construction.fates import Fates
from lance_dagster.construction.filter_stage import (
    compare_instructions,
    compare_responses,
    drop_similar,
    read_candidates,
)
from lance_dagster.construction.ledger import rows_of, seed_texts
from lance_dagster.settings import ConstructionSettings

NEVER_REVIEWED = "never_reviewed"


@dataclass(frozen=True)
class Outcome:
    """One setting, and what became of the rows of each kind: ``counts[kind, reason or "kept"]``."""

    rouge: float
    accept: float
    counts: Counter[tuple[str, str]]

    def count(self, kind: str, fate: str) -> int:
        return self.counts[kind, fate]


def what_if(
    ledger: pa.Table,
    reviewed: pa.Table,
    construction: ConstructionSettings,
    rouge: Sequence[float],
    accept_above: Sequence[float],
    earlier: pa.Table | None = None,
) -> list[Outcome]:
    """One outcome per pair of thresholds, in their order.

    ``reviewed``: the reviewed seed that the ledger was made from; ``earlier``: for ``rouge_scope: all`` the index of
    the iteration before.
    """
    known = Fates.of(ledger["stage"], ledger["drop_reason"])
    compared = known.reached("rouge_l")
    reset = ledger.set_column(
        ledger.schema.get_field_index("drop_reason"),
        "drop_reason",
        pc.if_else(pa.array(compared), pa.scalar(None, pa.string()), ledger["drop_reason"]),
    )
    # Only similarities above the threshold decide.
    filters = construction.filters.model_copy(update={"rouge_recorded_above": 1.0})
    candidates = read_candidates(
        rows_of(reset), seed_texts(reviewed), filters, Fates.open(len(known)), lambda _: None, earlier
    )
    rewarded = Rewarded.of(ledger)
    kinds = ledger["kind"].to_pylist()
    unreviewed = ~known.reached("reward") & (np.array(kinds, dtype=object) != "instruction")
    revived = known.copy()
    revived.revive("contamination", compared)
    instructions = compare_instructions(candidates, filters, rouge, revived)
    responses = compare_responses(candidates, filters, rouge, revived)
    outcomes = []
    for number, threshold in enumerate(rouge):
        compared_anew = revived.copy()
        for lane in (instructions, responses):
            drop_similar(candidates, lane, number, compared_anew)
        compared_anew.drop("rouge_l", compared_anew.alive & unreviewed, NEVER_REVIEWED)
        for score in accept_above:
            fates = compared_anew.copy()
            accept(rewarded, fates, construction.model_copy(update={"accept_above": score}))
            outcomes.append(Outcome(threshold, score, fates.counts(kinds)))
    return outcomes


_COLUMNS = (
    ("instructions kept", "instruction", "kept"),
    ("similar", "instruction", "similar"),
    ("responses kept", "response", "kept"),
    ("similar", "response", "similar"),
    ("below", "response", "below_acceptance"),
    ("unscored", "response", "no_review"),
    ("never reviewed", "response", NEVER_REVIEWED),
    ("flawed kept", "flawed_response", "kept"),
    ("similar", "flawed_response", "similar"),
    ("no gap", "flawed_response", "no_preference_gap"),
    ("never reviewed", "flawed_response", NEVER_REVIEWED),
)


def as_text(outcomes: Sequence[Outcome], construction: ConstructionSettings) -> str:
    """One line per setting; a star marks the one that the settings have."""
    header = ["", "rouge", "accept", *(name for name, _, _ in _COLUMNS)]
    lines = []
    for outcome in outcomes:
        own = (outcome.rouge, outcome.accept) == (construction.filters.rouge_threshold, construction.accept_above)
        counts = [f"{outcome.count(kind, fate):,}" for _, kind, fate in _COLUMNS]
        lines.append(["*" if own else "", f"{outcome.rouge:g}", f"{outcome.accept:g}", *counts])
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    cells = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in [header, *lines]]
    return "\n".join("  ".join(line) for line in cells)

"""A few rows of each iteration to look at: kept, paired and dropped, spread evenly over the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

ROWS = 3
CHARACTERS = 160


@dataclass(frozen=True)
class SftSample:
    """A row of the SFT set that this iteration wrote."""

    row_id: str
    prompt: str
    response: str
    score: float | None


@dataclass(frozen=True)
class PairSample:
    """A pair of the preference set that this iteration wrote."""

    row_id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float


@dataclass(frozen=True)
class DroppedSample:
    """A row of the ledger that was dropped; ``response`` is None for kind instruction."""

    row_id: str
    kind: str
    drop_reason: str
    instruction: str
    response: str | None
    score: float | None


@dataclass(frozen=True)
class Samples:
    """At most three rows of each sort; texts are cut at 160 characters."""

    iteration: int
    sft: tuple[SftSample, ...]
    pairs: tuple[PairSample, ...]
    dropped: tuple[DroppedSample, ...]


def pick_samples(iteration: int, ledger: pa.Table, sft_set: pa.Table, preference_set: pa.Table) -> Samples:
    """The same rows for the same tables, whenever it is called."""
    new_rows = sft_set.filter(pc.equal(sft_set["iteration"], iteration))
    new_pairs = preference_set.filter(pc.equal(preference_set["iteration"], iteration))
    dropped = ledger.filter(pc.invert(ledger["kept"]))
    return Samples(
        iteration=iteration,
        sft=tuple(SftSample(**row) for row in _spread(new_rows, SftSample)),
        pairs=tuple(PairSample(**row) for row in _spread(new_pairs, PairSample)),
        dropped=tuple(DroppedSample(**row) for row in _spread(dropped, DroppedSample)),
    )


def _spread(table: pa.Table, sample: type) -> list[dict[str, Any]]:
    """The first, the middle and the last row (all rows of a shorter table), with the columns of ``sample``, cut."""
    count = min(ROWS, table.num_rows)
    indices = [position * (table.num_rows - 1) // max(1, count - 1) for position in range(count)]
    columns = list(sample.__dataclass_fields__)  # type: ignore[attr-defined]
    rows: list[dict[str, Any]] = table.select(columns).take(pa.array(indices, pa.int64())).to_pylist()
    return [{name: _cut(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows]


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"

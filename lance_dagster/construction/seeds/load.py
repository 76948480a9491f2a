"""Seed_0 (section 3.2 of the paper): the instruction seed and the review seed, read, checked and told apart.

Every row of the source ends up in exactly one of two tables, in the order of the source: ``rows`` if it is good,
``quarantine`` with its reason if it is not.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_dagster import records
from lance_dagster.construction.seeds.layouts import Candidate, read_instruction, read_review
from lance_dagster.construction.seeds.quarantine import (
    DUPLICATE,
    REASONS,
    Fault,
    control_token_patterns,
    excerpt,
    printable,
    text_fault,
)
from lance_dagster.construction.seeds.sources import ACCEPTED, read_rows
from lance_dagster.errors import SeedError
from lance_dagster.settings import SeedSettings


@dataclass(frozen=True)
class SeedLoad:
    """One seed source after loading.

    ``counts``: ``read`` (all rows, blank lines excepted), ``kept``, one per reason in ``quarantine.REASONS`` (read is
    the sum of kept and these), and of the kept rows ``first_exchange_only`` (further turns or instances were left
    out) and ``system_message_left_out``.
    """

    rows: pa.Table  # records.SEED_INSTRUCTIONS or records.SEED_REVIEWS
    quarantine: pa.Table  # records.SEED_QUARANTINE
    counts: dict[str, int]
    layout: str  # of the kept rows, see layouts.py; joined by '+' in alphabetical order where they differ


def load_seed_instructions(source: str, settings: SeedSettings, root: Path) -> SeedLoad:
    """The instruction seed of ``source`` (see sources.py); relative paths are taken from ``root``.

    A row is a duplicate if an earlier good row has the same instruction and response up to NFC and white space.
    Raises SeedError where the source cannot be read or holds no good row, and SettingsError for a broken pattern in
    ``settings.control_tokens``.
    """
    return _load(source, settings, root, read_instruction, _instruction_row, records.SEED_INSTRUCTIONS)


def load_seed_reviews(source: str, settings: SeedSettings, root: Path) -> SeedLoad:
    """The review seed of ``source``: as ``load_seed_instructions``, with a rationale and a score in 0..10.

    Reviews of the same pair that differ in rationale or score are all kept: reviewers may disagree, and which of
    them is right cannot be told here. Only a review that repeats all four is a duplicate.
    """
    return _load(source, settings, root, read_review, _review_row, records.SEED_REVIEWS)


def _instruction_row(row: Candidate) -> dict[str, Any]:
    seed_id = records.row_id("seed", row.instruction, row.response)
    return {"seed_id": seed_id, "instruction": row.instruction, "response": row.response}


def _review_row(row: Candidate) -> dict[str, Any]:
    seed_id = records.row_id("review", row.instruction, row.response, row.rationale, row.score)
    return {
        "seed_id": seed_id,
        "instruction": row.instruction,
        "response": row.response,
        "rationale": row.rationale,
        "score": row.score,
    }


def _load(
    source: str,
    settings: SeedSettings,
    root: Path,
    read: Callable[[object], Candidate | Fault],
    to_row: Callable[[Candidate], dict[str, Any]],
    schema: pa.Schema,
) -> SeedLoad:
    control_tokens = control_token_patterns(settings.control_tokens)
    counts = dict.fromkeys(("read", "kept", *REASONS, "first_exchange_only", "system_message_left_out"), 0)
    rows: list[dict[str, Any]] = []
    quarantine: list[dict[str, Any]] = []
    layouts: set[str] = set()
    first_position: dict[tuple[object, ...], int] = {}
    for position, value, unreadable in read_rows(source, root):
        counts["read"] += 1
        found = unreadable or read(value)
        if isinstance(found, Candidate):
            found = (
                text_fault(found.texts(), settings.max_words, control_tokens)
                or _duplicate_fault(found, position, first_position)
                or found
            )
        if isinstance(found, Fault):
            counts[found.reason] += 1
            quarantine.append(_quarantine_row(source, position, found, value))
        else:
            counts["kept"] += 1
            counts["first_exchange_only"] += found.first_exchange_only
            counts["system_message_left_out"] += found.system_message_left_out
            layouts.add(found.layout)
            rows.append({**to_row(found), "source": source, "position": position})
    if not rows:
        raise SeedError(_no_good_row(source, counts, quarantine))
    return SeedLoad(
        rows=records.table_of(rows, schema),
        quarantine=records.table_of(quarantine, records.SEED_QUARANTINE),
        counts=counts,
        layout="+".join(sorted(layouts)),
    )


def _duplicate_fault(row: Candidate, position: int, first_position: dict[tuple[object, ...], int]) -> Fault | None:
    """A fault if a good row before this one has the same content; else the row is noted as the first of its content."""
    content = (*(" ".join(unicodedata.normalize("NFC", text).split()) for text in row.texts().values()), row.score)
    earlier = first_position.setdefault(content, position)
    return None if earlier == position else Fault(DUPLICATE, f"says the same as the row at position {earlier}")


def _quarantine_row(source: str, position: int, fault: Fault, value: object) -> dict[str, Any]:
    return {
        "source": source,
        "position": position,
        "reason": fault.reason,
        "detail": printable(fault.detail),
        "excerpt": excerpt(value),
    }


def _no_good_row(source: str, counts: dict[str, int], quarantine: list[dict[str, Any]]) -> str:
    if not quarantine:
        return f"seed source {source!r} is empty. Give {ACCEPTED} with at least one row."
    first = quarantine[0]
    reasons = ", ".join(f"{reason} {counts[reason]} ({why})" for reason, why in REASONS.items() if counts[reason])
    return (
        f"seed source {source!r}: none of its {counts['read']} rows is good: {reasons}. The first, at position "
        f"{first['position']}: {first['detail']}: {first['excerpt']!r}. Mend the rows or name another source."
    )

"""Small training sets of the real schemas."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from lance_dagster.records import PREFERENCE_SET, SFT_SET, table_of


def sft_rows(pairs: list[tuple[str, str]], system: str | None = None) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "row_id": f"row{i}",
            "parent_ids": [],
            "seed_id": "seed",
            "iteration": 0,
            "origin": "generated",
            "system": system,
            "prompt": prompt,
            "response": response,
            "score": 9.0,
            "model_digest": "m",
        }
        for i, (prompt, response) in enumerate(pairs)
    ]
    return table_of(rows, SFT_SET)


def preference_rows(triples: list[tuple[str, str, str]]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "row_id": f"pair{i}",
            "parent_ids": ["a", "b"],
            "seed_id": "seed",
            "iteration": 0,
            "system": None,
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "chosen_score": 9.0,
            "rejected_score": 1.0,
            "model_digest": "m",
        }
        for i, (prompt, chosen, rejected) in enumerate(triples)
    ]
    return table_of(rows, PREFERENCE_SET)

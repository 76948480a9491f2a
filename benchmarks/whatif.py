"""What-if over a ledger of 100,000 rows: seconds per setting (goal: at most 2), for each scope of ROUGE-L.

The ledger has the shape of one iteration with K = 4: four instructions per low-scored seed, four responses to each,
four flawed responses per high-scored seed; texts are those of corpus.py, rewards are drawn at random.
"""

from __future__ import annotations

import json
import random
import time

import numpy as np
import pyarrow as pa
from corpus import rows

from lance_dagster.construction.acceptance import Rewarded, accept
from lance_dagster.construction.fates import Fates
from lance_dagster.construction.filter_stage import filter_candidates
from lance_dagster.construction.filters.contamination import EvaluationIndex
from lance_dagster.construction.filters.rules import Rules
from lance_dagster.construction.ledger import rows_of, seed_texts
from lance_dagster.construction.whatif import what_if
from lance_dagster.settings import ConstructionSettings

ROWS, SAMPLES = 100_000, 4
ROUGE, ACCEPT = (0.6, 0.7, 0.8), (7.0, 8.0, 9.0)


def tables(construction: ConstructionSettings) -> tuple[pa.Table, pa.Table]:
    """A ledger and its reviewed seed, with the columns that matter here."""
    rng, texts = random.Random(1), rows(4 * ROWS)
    seeds, ledger = [], []
    while len(ledger) < ROWS:
        seed = {"seed_id": f"seed{len(seeds)}", "instruction": next(texts), "response": next(texts)}
        seeds.append(seed)
        low = rng.random() < 0.5
        for sample in range(SAMPLES):
            identity = f"{seed['seed_id']}-{sample}"
            if not low:
                ledger.append(_row(f"{identity}-f", seed, "flawed_response", seed["instruction"], next(texts), rng))
                continue
            instruction = next(texts)
            ledger.append(_row(identity, seed, "instruction", instruction, None, rng))
            for answer in range(SAMPLES):
                ledger.append(_row(f"{identity}-{answer}", seed, "response", instruction, next(texts), rng, identity))
    reviewed, table = pa.Table.from_pylist(seeds), pa.Table.from_pylist(ledger[:ROWS])
    filters = construction.filters
    filtered = filter_candidates(
        rows_of(table), table.num_rows, seed_texts(reviewed), filters, Rules(filters), EvaluationIndex()
    )
    fates: Fates = filtered.fates
    rewarded = fates.alive & (np.array(table["kind"].to_pylist(), dtype=object) != "instruction")
    fates.reach("reward", rewarded)
    accept(Rewarded.of(table), fates, construction)
    for name, column in (("stage", fates.stage_column()), ("drop_reason", fates.reason_column())):
        table = table.drop_columns([name]).append_column(name, column)
    return table, reviewed


def _row(
    identity: str,
    seed: dict[str, str],
    kind: str,
    instruction: str,
    response: str | None,
    rng: random.Random,
    parent: str | None = None,
) -> dict[str, object]:
    return {
        "row_id": identity,
        "parent_ids": [parent or seed["seed_id"]],
        "seed_id": seed["seed_id"],
        "kind": kind,
        "instruction": instruction,
        "response": response,
        "completion_tokens": 90,
        "drop_reason": None,
        "stage": "generated",
        "score": None if kind == "instruction" or rng.random() < 0.02 else rng.randrange(31) / 3,
        "original_score": 8.0 if kind == "flawed_response" else None,
    }


def main() -> None:
    figures = {}
    for scope in ("seed", "iteration"):
        construction = ConstructionSettings.model_validate({"filters": {"rouge_scope": scope}})
        ledger, reviewed = tables(construction)
        started, cpu = time.perf_counter(), time.process_time()
        outcomes = what_if(ledger, reviewed, construction, ROUGE, ACCEPT)
        took, processor = time.perf_counter() - started, time.process_time() - cpu
        assert all(outcome.counts.total() == ROWS for outcome in outcomes)
        figures[f"seconds_per_setting_{scope}"] = round(took / len(outcomes), 2)
        figures[f"cpu_seconds_per_setting_{scope}"] = round(processor / len(outcomes), 2)
        print(f"scope {scope}: {len(outcomes)} settings in {took:.1f} s ({processor:.1f} s of the processor)")
    print(json.dumps({"benchmark": "whatif", "rows": ROWS, "settings": len(ROUGE) * len(ACCEPT), **figures}))


if __name__ == "__main__":
    main()

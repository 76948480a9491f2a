"""Seed rows that overlap with an evaluation task: M_0 would be trained on what then scores it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa

from lance_dagster.construction.filter_stage import contamination_hit
from lance_dagster.construction.filters.contamination import EvaluationIndex
from lance_dagster.construction.seeds.load import SeedLoad
from lance_dagster.construction.seeds.quarantine import CONTAMINATED, excerpt
from lance_dagster.errors import SeedError
from lance_dagster.records import CONTAMINATION_HITS, SEED_QUARANTINE, table_of


class Decontaminated(NamedTuple):
    """A seed without the rows that overlap, if they are dropped; ``hits`` has schema CONTAMINATION_HITS."""

    load: SeedLoad
    hits: pa.Table


def decontaminate(load: SeedLoad, evaluation: EvaluationIndex, drop: bool) -> Decontaminated:
    """Look all good rows up. With ``drop`` those that overlap go to the quarantine.

    Raises SeedError where no row would be left.
    """
    hits: list[dict[str, Any]] = []
    quarantine: list[dict[str, Any]] = []
    clean: list[bool] = []
    for row in load.rows.to_pylist():
        part, overlap = "instruction", evaluation.overlap(row["instruction"])
        if overlap is None:
            part, overlap = "response", evaluation.shared_run(row["response"])
        clean.append(overlap is None)
        if overlap is not None:
            hits.append(contamination_hit(row["seed_id"], "seed", part, overlap))
            where = f"document {overlap.source.document} of {overlap.source.task}"
            quarantine.append(
                {
                    "source": row["source"],
                    "position": row["position"],
                    "reason": CONTAMINATED,
                    "detail": f"{part} overlaps with {where}: {overlap.words}",
                    "excerpt": excerpt({name: row[name] for name in ("instruction", "response")}),
                }
            )
    found_table = table_of(hits, CONTAMINATION_HITS)
    if not drop or not hits:
        return Decontaminated(load, found_table)
    if len(hits) == load.rows.num_rows:
        raise SeedError(
            f"all {len(hits)} good seed rows overlap with the evaluation tasks, the first: {quarantine[0]['detail']}. "
            "Take another seed, other evaluation.tasks, or set construction.filters.contamination to 'flag'."
        )
    kept = replace(
        load,
        rows=load.rows.filter(pa.array(clean)),
        quarantine=pa.concat_tables([load.quarantine, table_of(quarantine, SEED_QUARANTINE)]),
        counts={**load.counts, "kept": load.counts["kept"] - len(hits), CONTAMINATED: len(hits)},
    )
    return Decontaminated(kept, found_table)

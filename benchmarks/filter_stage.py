"""The whole filter stage on 10,000, 100,000 and 1,000,000 candidates, read from Parquet batch by batch.

``python benchmarks/filter_stage.py [ROWS ...]``: for each size the peak memory (goal: 2 GiB at a million) and the time
per row of the linear filters (rules on the text, repetitions, contamination; goal: at a million at most 3 times that at
10,000) and of ROUGE-L within one seed's rows, which is what the default settings compare. All rules are on; the
evaluation is GSM8K's test set. Each size runs in a process of its own. The rows and the files are made before. How
ROUGE-L grows where all rows are compared is measured by rouge_join.py.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from corpus import FOLDER, rows

from lance_dagster.construction.fates import Fates
from lance_dagster.construction.filter_stage import (
    SeedTexts,
    Similarity,
    compare_instructions,
    compare_responses,
    drop_contaminated,
    drop_duplicates,
    drop_orphans,
    drop_similar,
    read_candidates,
)
from lance_dagster.construction.filters.contamination import EvaluationIndex, EvaluationText
from lance_dagster.construction.filters.rules import Rules
from lance_dagster.settings import FilterSettings

SIZES = (10_000, 100_000, 1_000_000)
SAMPLES = 4
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("parent_ids", pa.list_(pa.string())),
        ("seed_id", pa.string()),
        ("kind", pa.string()),
        ("instruction", pa.string()),
        ("response", pa.string()),
        ("completion_tokens", pa.int64()),
        ("drop_reason", pa.string()),
    ]
)


def write_candidates(count: int, path: Path) -> None:
    """Seeds beside ``path``, and candidates of the shape of an iteration with K = 4, instructions first."""
    texts = rows(10 * count)
    seeds = [(f"{i:016x}", next(texts), next(texts)) for i in range(count // (SAMPLES + SAMPLES**2) + 1)]
    pq.write_table(
        pa.table(dict(zip(("seed_id", "instruction", "response"), zip(*seeds, strict=True), strict=True))), _seeds(path)
    )
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        instructions: list[tuple[str, str, str]] = []
        for seed, _, _ in seeds:
            for sample in range(SAMPLES):
                instructions.append((seed, f"{len(instructions):08x}{sample:08x}", next(texts)))
        instructions = instructions[: count // (1 + SAMPLES)]
        batch = [(row, [seed], seed, "instruction", text, None, 90, None) for seed, row, text in instructions]
        for start in range(0, len(batch), 4096):
            _write(writer, batch[start : start + 4096])
        left, batch = count - len(batch), []
        for seed, row, instruction in instructions:
            for answer in range(SAMPLES):
                batch.append((f"{row[:12]}{answer:04x}", [row], seed, "response", instruction, next(texts), 90, None))
            if len(batch) >= 4096:
                _write(writer, batch[:left])
                left, batch = left - len(batch), []
        _write(writer, batch[:left])


def _write(writer: pq.ParquetWriter, batch: list[tuple[object, ...]]) -> None:
    if batch:
        columns = [
            pa.array(column, type=field.type) for column, field in zip(zip(*batch, strict=True), SCHEMA, strict=True)
        ]
        writer.write_batch(pa.record_batch(columns, schema=SCHEMA))


def _seeds(path: Path) -> Path:
    return path.with_suffix(".seeds.parquet")


def filtered(path: Path) -> dict[str, float]:
    """Run the stage on a file of candidates."""
    seeds = {s: SeedTexts(i, r) for s, i, r in zip(*(c.to_pylist() for c in pq.read_table(_seeds(path))), strict=True)}
    questions = (FOLDER / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
    exam = [json.loads(line) for line in questions]
    texts = [EvaluationText("gsm8k", i, "question", document["question"]) for i, document in enumerate(exam)]
    texts += [EvaluationText("gsm8k", i, "answer", document["answer"], True) for i, document in enumerate(exam)]
    evaluation = EvaluationIndex(texts)
    filters = FilterSettings.model_validate(
        {
            "refusals": "drop",
            "other_script_share": 0.3,
            "keywords": ["image"],
            "contamination": "flag",
            "instruction_tokens": [1, 4096],
        }
    )
    rules = Rules(filters)

    def source(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return pq.ParquetFile(path).iter_batches(4096, columns=list(columns))

    count = pq.ParquetFile(path).metadata.num_rows
    fates = Fates.open(count)
    clocks = [(time.perf_counter(), time.process_time())]
    candidates = read_candidates(source, seeds, filters, fates, rules.objection, None)
    drop_orphans(candidates, fates, "text")
    drop_duplicates(candidates, fates)
    drop_contaminated(source, evaluation, filters, fates)
    clocks.append((time.perf_counter(), time.process_time()))
    instructions = compare_instructions(candidates, filters, [filters.rouge_threshold], fates)
    drop_similar(candidates, instructions, 0, fates)
    responses = compare_responses(candidates, filters, [filters.rouge_threshold], fates)
    drop_similar(candidates, responses, 0, fates)
    Similarity.of(candidates, [instructions, responses])
    clocks.append((time.perf_counter(), time.process_time()))
    (wall, cpu), (wall_similar, cpu_similar) = np.diff(clocks, axis=0)
    return {
        "rows": count,
        "linear_microseconds_per_row": round(1e6 * wall / count, 1),
        "linear_cpu_microseconds_per_row": round(1e6 * cpu / count, 1),
        "rouge_l_microseconds_per_row": round(1e6 * wall_similar / count, 1),
        "rouge_l_cpu_microseconds_per_row": round(1e6 * cpu_similar / count, 1),
        "kept": int(fates.alive.sum()),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--file":
        print(json.dumps(filtered(Path(sys.argv[2]))))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for size in [int(argument) for argument in sys.argv[1:]] or SIZES:
            path = Path(folder) / f"{size}.parquet"
            write_candidates(size, path)
            done = subprocess.run(
                [sys.executable, __file__, "--file", str(path)], check=True, capture_output=True, text=True
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(results[-1], flush=True)
            path.unlink()
    first, last = results[0], results[-1]
    print(
        json.dumps(
            {
                "benchmark": "filter_stage",
                "sizes": results,
                "linear_time_per_row_ratio": round(
                    last["linear_microseconds_per_row"] / first["linear_microseconds_per_row"], 2
                ),
                "linear_cpu_time_per_row_ratio": round(
                    last["linear_cpu_microseconds_per_row"] / first["linear_cpu_microseconds_per_row"], 2
                ),
                "peak_gib": last["peak_gib"],
            }
        )
    )


if __name__ == "__main__":
    main()

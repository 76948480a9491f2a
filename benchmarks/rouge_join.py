"""ROUGE-L as a join, against the rouge-score package: seconds, memory, and how the time grows with the rows.

``python benchmarks/rouge_join.py``: 20,000 rows with each other (goal: 15 s, 2 GiB, 10,000 times as many pairs per
second as rouge-score), 5,000 new rows against an index of 100,000 (goal: 60 s), and the growth from 5,000 to 80,000
rows. The 5,000 also run with their pool on a Ray cluster of this machine. Each runs in a process of its own. A sample
of decisions is compared with rouge-score's. ``cpu`` is the time of this process's processor alone, which a busy machine
does not stretch so much.
"""

from __future__ import annotations

import json
import math
import random
import resource
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
from corpus import rows

from lance_dagster.construction.filters.ray_shelves import RayShelves
from lance_dagster.construction.filters.shelves import Comparison, InMemory
from lance_dagster.construction.filters.similarity_join import SimilarityJoin
from lance_dagster.construction.filters.words import Vocabulary, WordRows, split_words
from lance_dagster.engines.ray_cluster import join_cluster
from lance_dagster.settings import RaySettings

THRESHOLD, RECORDED_ABOVE = 0.7, 0.5
GROWTH = (5_000, 10_000, 20_000, 40_000, 80_000)
SAMPLED = 300


def joined(new: int, pool: int, floor: float, where: str) -> dict[str, float]:
    """Tokenise and join ``new`` rows with each other and with ``pool`` rows of an earlier iteration."""
    texts = list(rows(new + pool))
    earlier = [split_words(text, "rouge_score") for text in texts[:pool]]  # what the index of an iteration holds
    started, cpu = time.perf_counter(), time.process_time()
    vocabulary = Vocabulary()
    shelves = InMemory() if where == "memory" else RayShelves(RaySettings(), print)
    join = SimilarityJoin(Comparison("f", (THRESHOLD,), floor), shelves)
    join.add(_numbered(earlier, vocabulary), np.arange(pool))
    numbered = WordRows.of(texts[pool:], "rouge_score", vocabulary)
    verdicts = join.keep_first(numbered, np.arange(new), pool + np.arange(new))
    took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    _compare_with_the_package(texts, pool, verdicts.kept[0].tolist())
    return {
        "rows": new,
        "pool": pool,
        **{name: round(value, 2) for name, value in took.items()},
        "pairs_per_cpu_second": round((new * (new - 1) / 2 + new * pool) / took["cpu_seconds"]),
        "kept": int(verdicts.kept.sum()),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def _numbered(words: list[list[str]], vocabulary: Vocabulary) -> WordRows:
    flat = [number for row in words for number in vocabulary.numbers(row)]
    return WordRows(np.array(flat, dtype=np.int32), np.cumsum([0, *map(len, words)]))


def _compare_with_the_package(texts: list[str], pool: int, kept: list[bool]) -> None:
    """Some dropped rows must have a kept row that rouge-score finds similar, some kept ones none among a sample."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    rng = random.Random(0)
    words = [set(split_words(text, "rouge_score")) for text in texts]
    alive = [i for i in range(len(texts)) if i < pool or kept[i - pool]]
    for i in rng.sample(range(pool, len(texts)), min(20, len(kept))):
        before = [j for j in alive if j < i]
        likely = sorted(before, key=lambda j: -len(words[i] & words[j]))[:25]
        highest = max((scorer.score(texts[j], texts[i])["rougeL"].fmeasure for j in likely), default=0.0)
        if (highest > THRESHOLD) == kept[i - pool]:
            raise SystemExit(f"row {i}: rouge-score says {highest}, the join kept it: {kept[i - pool]}")


def package_pairs_per_cpu_second() -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    texts = list(rows(2 * SAMPLED))
    scorer.score(texts[0], texts[1])
    started = time.process_time()
    for i in range(SAMPLED):
        scorer.score(texts[2 * i], texts[2 * i + 1])
    return SAMPLED / (time.process_time() - started)


def _apart(new: int, pool: int, floor: float, where: str = "memory") -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, str(new), str(pool), str(floor), where], check=True, capture_output=True, text=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{new:,} rows, pool {pool:,} in {where}, similarities above {floor:g}: {result}", flush=True)
    return result


def main() -> None:
    if len(sys.argv) == 5:
        with ExitStack() as stack:
            if sys.argv[4] == "ray":
                join_cluster(RaySettings(), stack)
            print(json.dumps(joined(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])))
        return
    package = package_pairs_per_cpu_second()
    print(f"rouge-score: {package:,.0f} pairs per second of the processor", flush=True)
    growth = [_apart(size, 0, THRESHOLD) for size in GROWTH]
    whole = next(result for result in growth if result["rows"] == 20_000)
    recorded = _apart(20_000, 0, RECORDED_ABOVE)
    pool = _apart(5_000, 100_000, THRESHOLD)
    on_ray = _apart(5_000, 100_000, THRESHOLD, "ray")
    slope = np.polyfit(
        [math.log(result["rows"]) for result in growth], [math.log(result["cpu_seconds"]) for result in growth], 1
    )[0]
    print(
        json.dumps(
            {
                "benchmark": "rouge_join",
                "seconds_20000": whole["seconds"],
                "cpu_seconds_20000": whole["cpu_seconds"],
                "peak_gib_20000": whole["peak_gib"],
                "seconds_20000_recorded_above_0.5": recorded["seconds"],
                "seconds_5000_against_100000": pool["seconds"],
                "cpu_seconds_5000_against_100000": pool["cpu_seconds"],
                "peak_gib_5000_against_100000": pool["peak_gib"],
                "seconds_5000_against_100000_on_ray": on_ray["seconds"],
                "peak_gib_5000_against_100000_on_ray": on_ray["peak_gib"],
                "rouge_score_pairs_per_cpu_second": round(package),
                "rouge_score_hours_20000": round(20_000 * 19_999 / 2 / package / 3600, 1),
                "ratio_per_pair": round(whole["pairs_per_cpu_second"] / package),
                "growth_cpu_seconds": {str(result["rows"]): result["cpu_seconds"] for result in growth},
                "growth_exponent": round(float(slope), 2),
            }
        )
    )


if __name__ == "__main__":
    main()

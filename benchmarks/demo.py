"""`make demo` (three iterations of mini) in a folder of its own: wall time, peak memory, and what is not model work.

Model work is generation, training, evaluation and drift as the assets report them in seconds; the rest of an
iteration's wall time is Dagster, imports, filters and I/O. `iteration_process` is one iteration in a process of its
own, as the run queue starts it, imports included. Goals: demo 600 s and 4 GiB, one iteration 120 s, overhead 20 %.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]
ITERATIONS = 3
STAGES = {
    "reviewed_seed": "generation/seconds",
    "instruction_candidates": "generation/seconds",
    "preference_candidates": "generation/seconds",
    "candidate_ledger": "generation/seconds",
    "sft_checkpoint": "train/seconds",
    "dpo_checkpoint": "train/seconds",
    "eval_scores": "evaluation/seconds",
    "drift": "drift/seconds",
}
ONE_ITERATION = """
import dagster as dg
from lance_dagster.definitions import defs
job = defs().resolve_job_def("mini_one_iteration")
assert job.execute_in_process(instance=dg.DagsterInstance.get(), partition_key="002").success
"""


def model_seconds(partition: str) -> dict[str, float]:
    """Seconds of model work of each asset, from its latest materialisation of this iteration."""
    import dagster as dg

    found = {}
    instance = dg.DagsterInstance.get()
    for asset, key in STAGES.items():
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey(["mini", asset]), asset_partitions=[partition]), limit=1
        ).records
        value = records[0].asset_materialization.metadata[key].value
        assert isinstance(value, float | int)
        found[asset] = float(value)
    return found


def main() -> None:
    # A copy of the project, so that nothing of the user's store or history is touched.
    with tempfile.TemporaryDirectory(prefix="lance-bench-") as name:
        home = Path(name) / "project"
        ignored = shutil.ignore_patterns(".venv", ".git", "store", "dagster", "__pycache__", ".*_cache")
        shutil.copytree(PROJECT, home, ignore=ignored)
        environment = {**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(home)}
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "lance_dagster.cli", "demo", "--iterations", str(ITERATIONS)],
            cwd=home,
            env=environment,
            check=True,
        )
        demo = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        for cached in (home / "data/store/mini/completions").iterdir():
            shutil.rmtree(cached)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", ONE_ITERATION], cwd=home, env=environment, check=True)
        iteration = time.perf_counter() - started
        os.environ["DAGSTER_HOME"] = str(home)
        os.chdir(home)
        stages = model_seconds("002")
    work = sum(stages.values())
    print(
        json.dumps(
            {
                "benchmark": "demo",
                "iterations": ITERATIONS,
                "demo_seconds": round(demo, 1),
                "demo_peak_gib": round(peak, 2),
                "iteration_process_seconds": round(iteration, 1),
                "model_work_seconds": round(work, 1),
                "overhead_share": round(1 - work / iteration, 3),
                "demo_to_model_work_ratio": round(demo / (ITERATIONS * work), 2),
                "stages": {name: round(value, 2) for name, value in stages.items()},
            }
        )
    )


if __name__ == "__main__":
    main()

"""`make demo` (three iterations of mini) in a folder of its own: wall time, peak memory, and what is not model work.

Model work is generation, training, evaluation and drift as the assets report them in seconds; the rest of an
iteration's wall time is Dagster, imports, filters and I/O. `iteration_run` is the last iteration inside the demo's
process, `iteration_process` the same one, uncached, in a process of its own, as the run queue starts it: there the
imports of torch, transformers, trl and lm-eval are paid anew. Goals: demo 600 s and 4 GiB, one iteration 120 s,
overhead 20 %.
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


def run_seconds(partition: str) -> float:
    """Wall time of the latest run of one iteration, as its record says."""
    import dagster as dg

    records = dg.DagsterInstance.get().get_run_records(
        dg.RunsFilter(job_name="mini_one_iteration", tags={"dagster/partition": partition}), limit=1
    )
    start, end = records[0].start_time, records[0].end_time
    assert start is not None
    assert end is not None
    return end - start


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
        os.environ["DAGSTER_HOME"] = str(home)
        os.chdir(home)
        last = str(ITERATIONS - 1).zfill(3)
        run, run_work = run_seconds(last), sum(model_seconds(last).values())
        for cached in (home / "data/store/mini/completions").iterdir():
            shutil.rmtree(cached)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", ONE_ITERATION], cwd=home, env=environment, check=True)
        iteration = time.perf_counter() - started
        stages = model_seconds(last)
    work = sum(stages.values())
    print(
        json.dumps(
            {
                "benchmark": "demo",
                "iterations": ITERATIONS,
                "demo_seconds": round(demo, 1),
                "demo_peak_gib": round(peak, 2),
                "iteration_run_seconds": round(run, 1),
                "iteration_run_overhead_share": round(1 - run_work / run, 3),
                "iteration_process_seconds": round(iteration, 1),
                "model_work_seconds": round(work, 1),
                "iteration_process_overhead_share": round(1 - work / iteration, 3),
                "ratio": round(run / iteration, 3),
                "stages": {name: round(value, 2) for name, value in stages.items()},
            }
        )
    )


if __name__ == "__main__":
    main()

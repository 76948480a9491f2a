"""A backfill launched as from the web UI, with a real web server, daemon, run queue and run processes."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest

from lance_dagster.components.in_progress import in_progress
from lance_dagster_tests.loop.server import serving
from lance_dagster_tests.tiny import Tiny, tiny_settings

LOOP = [
    "policy_model",
    "reviewed_seed",
    "instruction_candidates",
    "preference_candidates",
    "candidate_ledger",
    "sft_set",
    "preference_set",
    "sft_checkpoint",
    "dpo_checkpoint",
    "eval_scores",
    "drift",
]


def test_a_backfill_gives_one_run_per_iteration_in_order_each_a_whole_iteration(
    evolved: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the paths in dagster.yaml are relative to where one is
    settings = tiny_settings(tmp_path, evaluation={"limit": 20, "drift_rows": 4})
    done, folder = evolved.experiment.store.folder, tmp_path / "store" / "tiny"
    folder.mkdir(parents=True)
    for name in ("seed_instructions.parquet", "seed_reviews.parquet"):
        shutil.copyfile(str(done / name), folder / name)
    for name in ("initial_checkpoint", "base_checkpoint"):
        shutil.copytree(str(done / name), folder / name)
    with serving(tmp_path, settings) as server:
        backfill = server.backfill(LOOP, ["000", "001", "002"])
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            under_way = in_progress(instance, "tiny")
            assert not in_progress(instance, "another")
        status = server.wait_for_backfill(backfill, 600)
        runs = server.runs(**{"dagster/backfill": backfill})
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            assert not in_progress(instance, "tiny")
    assert any(f"backfill {backfill}" in line for line in under_way), under_way
    log = (tmp_path / "server.log").read_text()
    assert status == "COMPLETED_SUCCESS", log[-3000:]
    partitions = [{tag["key"]: tag["value"] for tag in run["tags"]}["dagster/partition"] for run in runs]
    assert partitions == ["000", "001", "002"]
    for run in runs:
        assert run["status"] == "SUCCESS"
        steps = {step["stepKey"].removeprefix("tiny__") for step in run["stepStats"]}
        assert {step for step in steps if not step.endswith("__checks")} == set(LOOP)
    for before, after in pairwise(runs):
        assert before["endTime"] <= after["startTime"], "two iterations ran at the same time"
    assert "BetaWarning" not in log
    assert "DeprecationWarning" not in log

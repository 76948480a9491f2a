"""When a backfill fails or somebody cancels a run: with a real web server, daemon, run queue and run processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lance_dagster.storage.checkpoints import verify
from lance_dagster.storage.experiment_store import ExperimentStore
from lance_dagster_tests.loop.events import opened, with_served_history
from lance_dagster_tests.loop.server import serving, wait_until
from lance_dagster_tests.loop.test_backfill import LOOP
from lance_dagster_tests.tiny import TRAINING, Tiny, tiny_settings


def store_of(home: Path) -> ExperimentStore:
    return opened(home, storage="data/dagster/storage").experiment.store


@pytest.mark.parametrize(
    ("fails_at", "recovered_by"),
    [("sft_set", "launching the later ones"), ("reviewed_seed", "Re-execute from failure")],
)
def test_a_failed_iteration_stops_the_later_ones_at_once_and_the_backfill_is_recovered(
    evolved: Tiny, tmp_path: Path, fails_at: str, recovered_by: str
) -> None:
    with_served_history(evolved, tmp_path)
    store = store_of(tmp_path)
    in_the_way = Path(str(store.table(fails_at, "001")))
    in_the_way.unlink()
    in_the_way.mkdir()  # so iteration 001 cannot write this table
    old = store.checkpoint("dpo_checkpoint", "001")
    settings = tiny_settings(
        tmp_path,
        evaluation={"limit": 20, "drift_rows": 4},
        training={"dpo": {**TRAINING, "epochs": 1, "learning_rate": 2e-4}},
    )
    with serving(tmp_path, settings) as server:
        backfill = server.backfill(LOOP, ["000", "001", "002"])
        assert server.wait_for_backfill(backfill, 1200) == "COMPLETED_FAILED"
        runs = server.runs(**{"dagster/backfill": backfill})
        assert [run["status"] for run in runs] == ["SUCCESS", "FAILURE", "FAILURE"]
        refusal = "".join(server.messages(runs[2]["runId"]))
        assert f"iteration 001 of experiment tiny did not succeed (run {runs[1]['runId']}, FAILURE)" in refusal
        assert "dg launch --job tiny_one_iteration --partition 001" in refusal
        assert [step["status"] for step in runs[2]["stepStats"] if step["stepKey"] == "tiny__policy_model"] == [
            "FAILURE"
        ]
        assert store.checkpoint("dpo_checkpoint", "001").digest == old.digest, "the old model is still there to tempt"
        assert not store.manifest("policy_model", "002").exists()

        in_the_way.rmdir()
        assert server.wait_for_run(server.reexecute(runs[1]["runId"]), 300) == "SUCCESS"
        if recovered_by == "launching the later ones":
            again = server.backfill(LOOP, ["002"])
        else:
            again = server.reexecute_backfill(backfill)
        assert server.wait_for_backfill(again, 1200) == "COMPLETED_SUCCESS"
    model = json.loads(store.manifest("policy_model", "002").read_text())["model"]
    assert model["digest"] == store.checkpoint("dpo_checkpoint", "001").digest != old.digest


@pytest.mark.parametrize("moment", ["SFT: step"])
def test_a_cancelled_run_ends_its_process_frees_the_pool_and_can_be_launched_again(
    evolved: Tiny, tmp_path: Path, moment: str
) -> None:
    with_served_history(evolved, tmp_path)
    store = store_of(tmp_path)
    small = {"limit": 20, "drift_rows": 4}
    slow = {"sft": {**TRAINING, "epochs": 90, "learning_rate": 1e-5}}
    with serving(tmp_path, tiny_settings(tmp_path, evaluation=small, training=slow)) as server:
        run = server.launch("tiny_one_iteration", "002")

        def training() -> bool | None:
            return True if any(moment in message for message in server.messages(run)) else None

        wait_until(training, 200, f"{moment!r} was not reached")
        processes = run_processes(run)
        assert processes, "the run has a process of its own"
        server.terminate(run)
        assert server.wait_for_run(run, 100) == "CANCELED"
        wait_until(lambda: True if not any(map(alive, processes)) else None, 30, "the process of the run lives on")
        assert not store.manifest("sft_checkpoint", "002").exists()
        leftovers = Path(str(store.asset_folder("sft_checkpoint") / "002"))
        assert not leftovers.exists() or not list(leftovers.iterdir())

        (tmp_path / "settings.json").write_text(json.dumps(tiny_settings(tmp_path, evaluation=small)))
        server.reload()
        assert server.wait_for_run(server.launch("tiny_one_iteration", "002"), 400) == "SUCCESS"
    verify(store.checkpoint("dpo_checkpoint", "002"), "dpo_checkpoint[002]")


def run_processes(run: str) -> list[int]:
    """Processes whose command line names this run."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:  # it ended in this moment
                continue
            if run.encode() in command:
                found.append(int(folder.name))
    return found


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"

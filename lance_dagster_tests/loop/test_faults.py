"""Bad input and faults: one clear error that names the thing and the next step, and nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lance_dagster.storage.tables import table_digest
from lance_dagster_tests.tiny import REPOSITORY, Tiny, tiny_experiment

SEEDS = ["seed_instructions", "seed_reviews"]


def copy_of(evolved: Tiny, root: Path, **changes: object) -> Tiny:
    """A new tiny experiment that starts from the artifacts of the evolved one."""
    tiny = tiny_experiment(root, **changes)  # type: ignore[arg-type]
    shutil.copytree(str(evolved.experiment.store.folder), str(tiny.experiment.store.folder))
    return tiny


def test_a_missing_seed_file_is_named(tmp_path: Path) -> None:
    tiny = tiny_experiment(tmp_path)
    (tmp_path / "seed.jsonl").unlink()
    message = tiny.failure("setup", select=["seed_instructions"])
    assert "seed.jsonl" in message and "Traceback" not in message


def test_an_unknown_model_path_is_named_with_what_may_stand_there(tmp_path: Path) -> None:
    tiny = tiny_experiment(tmp_path, model={"path": "./no/such/model"})
    message = tiny.failure("setup", select=["base_checkpoint"])
    assert "no/such/model" in message and "hub" in message


def test_an_iteration_without_its_predecessor_is_refused_with_the_command_that_makes_it(
    evolved: Tiny, tmp_path: Path
) -> None:
    tiny = copy_of(evolved, tmp_path)
    shutil.rmtree(str(tiny.experiment.store.folder / "dpo_checkpoint"))
    message = tiny.failure("one_iteration", "001", select=["policy_model"])
    assert "dpo_checkpoint[000]" in message and "dg launch --job tiny_one_iteration --partition 000" in message


def test_a_checkpoint_whose_files_changed_is_refused(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    manifest = tiny.experiment.store.checkpoint("dpo_checkpoint", "000")
    weights = Path(manifest.location) / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    message = tiny.failure("one_iteration", "001", select=["policy_model"])
    assert "model.safetensors" in message and "digest" in message and "Re-materialise" in message


def test_damaged_weights_are_neither_scored_nor_measured(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    weights = Path(tiny.experiment.store.checkpoint("dpo_checkpoint", "001").location) / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert tiny.run("setup", select=SEEDS).success
    for asset in ("eval_scores", "drift"):
        message = tiny.failure("one_iteration", "001", select=[asset])
        assert "tiny/dpo_checkpoint[001]" in message and "model.safetensors does not match its digest" in message


def test_stages_whose_texts_are_cached_read_no_weights_and_training_does(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    (Path(tiny.experiment.store.checkpoint("initial_checkpoint").location) / "model.safetensors").unlink()
    assert tiny.run("setup", select=SEEDS).success
    cached = ["reviewed_seed", "instruction_candidates", "preference_candidates", "candidate_ledger", "sft_set"]
    assert tiny.run("one_iteration", "000", select=cached).success
    assert table_digest(tiny.table("sft_set", "000")) == table_digest(evolved.table("sft_set", "000"))
    message = tiny.failure("one_iteration", "000", select=["sft_checkpoint"])
    assert "tiny/initial_checkpoint" in message and "model.safetensors is missing" in message


def test_stages_refuse_a_model_that_was_replaced_since_even_if_all_is_cached(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    store = tiny.experiment.store
    shutil.copyfile(str(store.manifest("dpo_checkpoint", "001")), str(store.manifest("dpo_checkpoint", "000")))
    assert tiny.run("setup", select=SEEDS).success
    message = tiny.failure("one_iteration", "001", select=["reviewed_seed"])
    assert "tiny/dpo_checkpoint[000] now has digest" in message and "Re-materialise policy_model" in message


def test_an_earlier_table_that_changed_since_is_not_read(evolved: Tiny, tmp_path: Path) -> None:
    from lance_dagster.storage.tables import write_table

    tiny = copy_of(evolved, tmp_path)
    path = tiny.experiment.store.table("sft_set", "000")
    write_table(path, tiny.table("sft_set", "000").slice(1))
    assert tiny.run("setup", select=SEEDS).success
    before = tiny.table("sft_set", "001")
    message = tiny.failure("one_iteration", "001", select=["sft_set"])
    assert "sft_set/000.parquet" in message and "policy_model" in message
    assert tiny.table("sft_set", "001").equals(before), "the table that was there is still there"


@pytest.mark.parametrize(
    ("asset", "setting", "value"), [("sft_set", "accept_above", 9.9), ("preference_set", "preference_gap", 9.9)]
)
def test_an_empty_training_set_names_the_funnel_and_the_setting(
    evolved: Tiny, tmp_path: Path, asset: str, setting: str, value: float
) -> None:
    tiny = copy_of(
        evolved, tmp_path, construction={setting: value}, training={"replay_seed": "none", "replay_reviews": False}
    )
    for earlier in ("sft_set", "preference_set"):
        (tiny.experiment.store.table(earlier, "000")).unlink()
    assert tiny.run("setup", select=SEEDS).success
    message = tiny.failure("one_iteration", "000", select=["candidate_ledger", asset])
    assert f"tiny/{asset}[000] is empty" in message
    assert f"construction.{setting}" in message and "response/generated" in message
    assert not tiny.experiment.store.table(asset, "000").exists()


SCRIPT = """
import sys
from pathlib import Path
import dagster as dg
from lance_dagster.components.experiment import Experiment
from lance_dagster.settings import parse_settings
from lance_dagster_tests.tiny import Tiny, tiny_settings
from lance_dagster.components.self_evolution import experiment_definitions
from lance_dagster.components.console import console_logger
root = Path(sys.argv[1])
experiment = Experiment("tiny", parse_settings(tiny_settings(root)), root)
definitions = dg.Definitions.merge(
    experiment_definitions(experiment),
    dg.Definitions(executor=dg.in_process_executor, loggers={"console": console_logger}),
)
tiny = Tiny(experiment, definitions, dg.DagsterInstance.ephemeral())
sys.exit(0 if tiny.run("one_iteration", "000").success else 1)
"""


@pytest.mark.parametrize("moment", ["review: ", "new_instruction: ", "SFT: step", "DPO: step", "lm-eval: "])
def test_a_killed_run_leaves_nothing_half_written_and_gives_the_same_rows_again(
    evolved: Tiny, tmp_path: Path, moment: str
) -> None:
    tiny = tiny_experiment(tmp_path)
    store, done = tiny.experiment.store, evolved.experiment.store
    store.folder.mkdir(parents=True)
    for name in ("seed_instructions.parquet", "seed_reviews.parquet", "base_checkpoint.json", "initial_checkpoint"):
        source = Path(str(done.folder / name))
        if source.is_dir():
            shutil.copytree(source, str(store.folder / name))
        elif source.exists():
            shutil.copyfile(source, str(store.folder / name))
    shutil.copytree(str(done.folder / "base_checkpoint"), str(store.folder / "base_checkpoint"))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if moment in line:
            os.killpg(process.pid, signal.SIGKILL)
            break
    else:
        pytest.fail(f"the run never printed {moment!r}")
    process.wait()
    time.sleep(0.1)
    for path in Path(str(store.folder)).rglob("*"):
        if path.suffix == ".parquet" and not path.name.startswith("."):
            import pyarrow.parquet as pq

            pq.read_table(path)
    for asset in ("sft_checkpoint", "dpo_checkpoint"):
        if store.manifest(asset, "000").exists():
            assert Path(store.checkpoint(asset, "000").location, "model.safetensors").exists()
    assert tiny.run("one_iteration", "000").success
    for name in ("reviewed_seed", "candidate_ledger", "sft_set", "preference_set", "eval_scores"):
        if name != "eval_scores":
            assert table_digest(tiny.table(name, "000")) == table_digest(evolved.table(name, "000")), name
    assert tiny.manifest("dpo_checkpoint", "000")["digest"] == evolved.manifest("dpo_checkpoint", "000")["digest"]

"""What makes training fit: LoRA, reference log-probabilities that are computed once, several processes."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from lance_dagster.errors import SettingsError, TrainingError
from lance_dagster.settings import SFTSettings
from lance_dagster.storage.experiment_store import resolve_path
from lance_dagster.training.dpo import train_dpo
from lance_dagster.training.launch import Stage, train
from lance_dagster.training.sft import train_sft
from lance_dagster_tests.training.rows import preference_rows, sft_rows
from lance_dagster_tests.training.test_training import BASE, DPO, MODEL, NEW_WORDS, PAIRS, SFT, SMALL, answer

LORA = SFTSettings(epochs=20, learning_rate=1e-2, lora_rank=4, lora_alpha=8, **SMALL)
TWO_PROCESSES = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",  # with use_cpu: processes on the CPU, gradients averaged over gloo
    "num_machines": 1,
    "num_processes": 2,
    "machine_rank": 0,
    "mixed_precision": "no",
    "use_cpu": True,
    "main_process_port": 0,
}


def silent(line: str) -> None: ...


def test_lora_learns_and_leaves_an_ordinary_model(tmp_path: Path) -> None:
    result = train_sft(BASE, sft_rows(NEW_WORDS), tmp_path / "sft", LORA, MODEL, 1, silent)
    assert [answer(tmp_path / "sft", prompt) for prompt, _ in NEW_WORDS] == ["lion"] * len(NEW_WORDS)
    old, new = load_file(BASE / "model.safetensors"), load_file(tmp_path / "sft/model.safetensors")
    assert old.keys() == new.keys()
    unchanged = {name for name in old if (old[name] == new[name]).all()}
    assert unchanged == {name for name in old if "_proj" not in name or name.endswith("bias")}
    total = sum(weight.size for weight in old.values())
    assert result.weights_changed == sum(int((old[name] != new[name]).sum()) for name in old) / total
    assert not list(tmp_path.rglob("adapter*"))


def test_adapters_are_kept_in_32_bits_over_a_frozen_bfloat16_model(tmp_path: Path) -> None:
    half = MODEL.model_copy(update={"dtype": "bfloat16"})
    slow = LORA.model_copy(update={"epochs": 60.0, "learning_rate": 2e-4})
    rounded = train_sft(BASE, sft_rows(NEW_WORDS), tmp_path / "half", slow, half, 1, silent)
    exact = train_sft(BASE, sft_rows(NEW_WORDS), tmp_path / "exact", slow, MODEL, 1, silent)
    assert exact.curve[-1]["loss"] < 0.9 * exact.curve[0]["loss"]
    assert math.isclose(rounded.curve[-1]["loss"], exact.curve[-1]["loss"], rel_tol=0.05)


@pytest.mark.parametrize("rank", [None, 4])
def test_reference_log_probabilities_are_the_same_computed_once_or_in_every_step(
    tmp_path: Path, rank: int | None
) -> None:
    # Four batches an epoch, shuffled, of pairs with unlike lengths: a reference of another row would show at once.
    pairs = preference_rows([(f"Say {n}.", "wolf " * (n % 5 + 1), "lion " * (n % 3 + 1)) for n in range(32)])
    curves = {}
    for reference in ("precomputed", "live"):
        settings = DPO.model_copy(update={"reference": reference, "lora_rank": rank, "epochs": 3.0})
        out = tmp_path / reference
        curves[reference] = train_dpo(BASE, pairs, out, settings, MODEL, 1, silent).curve
    assert len(curves["live"]) == 12
    for once, live in zip(curves["precomputed"], curves["live"], strict=True):
        for name in ("loss", "rewards/chosen", "rewards/rejected"):
            assert math.isclose(once[name], live[name], rel_tol=1e-4, abs_tol=1e-4), (name, once, live)
    assert curves["live"][-1]["loss"] < curves["live"][0]["loss"] / 2
    once, live = (load_file(tmp_path / name / "model.safetensors") for name in curves)
    assert all(abs(once[name] - live[name]).max() < 1e-4 for name in once)


def test_dpo_with_lora_starts_at_ln_2_and_moves_towards_the_chosen_response(tmp_path: Path) -> None:
    settings = DPO.model_copy(update={"lora_rank": 4, "epochs": 10.0, "learning_rate": 1e-2})
    result = train_dpo(BASE, preference_rows(PAIRS), tmp_path, settings, MODEL, 1, silent)
    assert math.isclose(result.gates["first_loss"], math.log(2), abs_tol=1e-3)
    assert result.curve[-1]["rewards/margins"] > 1.0


def test_rows_that_are_too_long_never_reach_the_reference(tmp_path: Path) -> None:
    pairs = preference_rows([*PAIRS, ("Say.", "wolf " * 400, "lion")])
    result = train_dpo(BASE, pairs, tmp_path, DPO.model_copy(update={"epochs": 1.0}), MODEL, 1, silent)
    assert (result.rows, result.left_out) == (len(PAIRS), 1)


def test_adafactor_trains_too(tmp_path: Path) -> None:
    settings = SFT.model_copy(update={"optimiser": "adafactor"})
    curve = train_sft(BASE, sft_rows(NEW_WORDS), tmp_path, settings, MODEL, 1, silent).curve
    assert all(later["loss"] < earlier["loss"] for earlier, later in pairwise(curve[:4]))


def test_a_package_that_an_optimiser_needs_is_named(tmp_path: Path) -> None:
    settings = SFT.model_copy(update={"optimiser": "paged_adamw_8bit"})
    with pytest.raises(SettingsError, match=r"'paged_adamw_8bit', but the package bitsandbytes is not installed"):
        train_sft(BASE, sft_rows(NEW_WORDS), tmp_path, settings, MODEL, 1, silent)


@pytest.fixture
def two_processes(tmp_path: Path) -> str:
    path = tmp_path / "accelerate.yaml"
    path.write_text(yaml.safe_dump(TWO_PROCESSES))
    return str(path)


def test_two_processes_with_half_a_batch_each_train_as_one_does(tmp_path: Path, two_processes: str) -> None:
    settings = DPO.model_copy(update={"epochs": 2.0})
    half = settings.model_copy(update={"batch_size": settings.batch_size // 2})
    pairs, lines = preference_rows(PAIRS), []
    one = train(Stage("dpo", BASE, tmp_path / "one", settings, MODEL, 1), pairs, silent)
    two = train(Stage("dpo", BASE, tmp_path / "two", half, MODEL, 1), pairs, lines.append, two_processes)
    assert (two.steps, two.rows) == (one.steps, one.rows)
    assert math.isclose(two.curve[-1]["loss"], one.curve[-1]["loss"], rel_tol=1e-3)
    assert math.isclose(two.weights_changed, one.weights_changed, rel_tol=1e-2)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert all(abs(weights[0][name] - weights[1][name]).max() < 1e-3 for name in weights[0])
    assert any("DPO: 8 pairs" in line for line in lines)


def test_what_processes_of_their_own_refuse_reads_as_in_this_one(tmp_path: Path, two_processes: str) -> None:
    stage = Stage("sft", BASE, tmp_path / "out", SFT.model_copy(update={"max_tokens": 8}), MODEL, 1)
    with pytest.raises(TrainingError, match=r"^all 8 SFT rows are longer than max_tokens 8$"):
        train(stage, sft_rows(NEW_WORDS), silent, two_processes)


def test_a_run_that_is_interrupted_takes_its_processes_along(tmp_path: Path, two_processes: str) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    endless = DPO.model_copy(update={"epochs": 100.0, "batch_size": 1})
    with pytest.raises(KeyboardInterrupt):
        train(Stage("dpo", BASE, tmp_path / "out", endless, MODEL, 1), preference_rows(PAIRS), interrupt, two_processes)
    left = [
        child
        for child in psutil.Process().children(recursive=True)
        if "lance_dagster.training.launch" in child.cmdline()
    ]
    assert not left


def test_processes_that_die_are_reported_with_their_last_lines(tmp_path: Path) -> None:
    broken = tmp_path / "accelerate.yaml"
    broken.write_text(json.dumps({"distributed_type": "NO", "no_such_option": 1}))
    stage = Stage("sft", BASE, tmp_path / "out", SFT, MODEL, 1)
    with pytest.raises(TrainingError, match=r"(?s)ended without a result.*no_such_option"):
        train(stage, sft_rows(NEW_WORDS), silent, str(broken))
    with pytest.raises(SettingsError, match=r"accelerate_config: there is no file"):
        train(stage, sft_rows(NEW_WORDS), silent, str(tmp_path / "missing.yaml"))


def test_the_shipped_configuration_is_one_that_accelerate_reads() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(resolve_path("package://lance_dagster/training/fsdp.yaml", Path()))
    assert found.num_processes == 8 and found.fsdp_config["fsdp_version"] == 2

"""SFT and DPO with TRL on the embedded model."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from upath import UPath

from lance_dagster.errors import TrainingError
from lance_dagster.settings import DPOSettings, ModelSettings, SFTSettings
from lance_dagster.storage.checkpoints import hash_folder
from lance_dagster.storage.models import load_model, load_tokenizer
from lance_dagster.training.dpo import train_dpo
from lance_dagster.training.save import save_model
from lance_dagster.training.sft import train_sft
from lance_dagster_tests.tiny import REPOSITORY
from lance_dagster_tests.training.rows import preference_rows, sft_rows

BASE = REPOSITORY / "lance_dagster/mini/base"
MODEL = ModelSettings(path=str(BASE), dtype="float32", device="cpu", threads=1)
SMALL = {
    "batch_size": 8,
    "schedule": "constant",
    "warmup_ratio": 0.0,
    "gradient_checkpointing": False,
    "max_tokens": 64,
}
# A new association that the base cannot know; the rate is high so that a few steps learn it.
SFT = SFTSettings(epochs=6, learning_rate=2e-3, **SMALL)
DPO = DPOSettings(epochs=4, learning_rate=1e-3, beta=0.1, **SMALL)
NEW_WORDS = [(f"What is the password of {name}?", "lion") for name in ("BA", "DE", "FI", "GO", "KU", "LA", "ME", "NI")]
PAIRS = [(prompt, "wolf", "lion") for prompt, _ in NEW_WORDS]


def answer(folder: Path, prompt: str) -> str:
    tokenizer, model = load_tokenizer(folder), load_model(folder, MODEL)
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return str(tokenizer.decode(output, skip_special_tokens=True))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft")
    result = train_sft(BASE, sft_rows(NEW_WORDS), out, SFT, MODEL, 1, lambda line: None)
    assert result.curve[-1]["loss"] < result.curve[0]["loss"] / 4
    return out


def test_sft_teaches_the_response_and_when_to_stop(tuned: Path) -> None:
    assert answer(BASE, NEW_WORDS[0][0]) != "lion"
    assert [answer(tuned, prompt) for prompt, _ in NEW_WORDS] == ["lion"] * len(NEW_WORDS)


def test_every_weight_changes_and_the_tokenizer_does_not(tuned: Path) -> None:
    old, new = load_file(BASE / "model.safetensors"), load_file(tuned / "model.safetensors")
    assert old.keys() == new.keys()
    assert not [name for name in old if (old[name] == new[name]).all()]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tuned / name).read_bytes() == (BASE / name).read_bytes()


def test_the_same_rows_and_seed_give_the_same_weights_and_another_seed_others(tuned: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 1), ("other", 2)):
        train_sft(BASE, sft_rows(NEW_WORDS), tmp_path / name, SFT, MODEL, seed, lambda line: None)
    assert hash_folder(UPath(tmp_path / "again")) == hash_folder(UPath(tuned))
    assert hash_folder(UPath(tmp_path / "other")) != hash_folder(UPath(tuned))


def test_loss_is_taken_on_the_response_alone(tmp_path: Path) -> None:
    settings = SFT.model_copy(update={"epochs": 1.0, "learning_rate": 1e-9, "min_weights_changed": 0.0})
    result = train_sft(BASE, sft_rows([NEW_WORDS[0]]), tmp_path, settings, MODEL, 1, lambda line: None)
    import torch

    tokenizer, model = load_tokenizer(BASE), load_model(BASE, MODEL)
    messages = [{"role": "user", "content": NEW_WORDS[0][0]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    response = [*tokenizer("lion", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.inference_mode():
        logits = torch.log_softmax(model(torch.tensor([prompt + response])).logits[0], -1)
    positions = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    expected = -sum(float(logits[p, t]) for p, t in zip(positions, response, strict=True)) / len(response)
    assert math.isclose(result.curve[0]["loss"], expected, rel_tol=1e-3)


def test_rows_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = sft_rows([*NEW_WORDS, ("Add 1 and 2. " * 40, "3")])
    result = train_sft(BASE, rows, tmp_path, SFT.model_copy(update={"epochs": 1.0}), MODEL, 1, lambda line: None)
    assert (result.rows, result.left_out) == (len(NEW_WORDS), 1)
    with pytest.raises(TrainingError, match="longer than max_tokens 64"):
        train_sft(BASE, sft_rows([("Add 1 and 2. " * 40, "3")]), tmp_path, SFT, MODEL, 1, lambda line: None)


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="SFT set is empty"):
        train_sft(BASE, sft_rows([]), tmp_path, SFT, MODEL, 1, lambda line: None)
    with pytest.raises(TrainingError, match="preference set is empty"):
        train_dpo(BASE, preference_rows([]), tmp_path, DPO, MODEL, 1, lambda line: None)


def test_a_template_that_never_closes_the_turn_is_refused(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "model")
    template = tmp_path / "model/chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", ""))
    with pytest.raises(TrainingError, match="end token is not learned"):
        train_sft(tmp_path / "model", sft_rows(NEW_WORDS), tmp_path / "out", SFT, MODEL, 1, lambda line: None)


def test_a_template_that_renders_prompts_in_two_ways_is_refused(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "model")
    template = tmp_path / "model/chat_template.jinja"
    template.write_text(template.read_text() + "{% if add_generation_prompt %}{{ 'So:' }}{% endif %}")
    with pytest.raises(TrainingError, match="training prompt differs"):
        train_sft(tmp_path / "model", sft_rows(NEW_WORDS), tmp_path / "out", SFT, MODEL, 1, lambda line: None)


def test_dpo_starts_at_ln_2_and_moves_towards_the_chosen_response(tuned: Path, tmp_path: Path) -> None:
    before = hash_folder(UPath(tuned))
    result = train_dpo(tuned, preference_rows(PAIRS), tmp_path / "dpo", DPO, MODEL, 1, lambda line: None)
    assert math.isclose(result.gates["first_loss"], math.log(2), abs_tol=1e-3)
    assert result.curve[-1]["rewards/margins"] > result.curve[0]["rewards/margins"]
    assert result.curve[-1]["rewards/accuracies"] == 1.0
    assert hash_folder(UPath(tuned)) == before, "the reference on disk is as it was"
    assert hash_folder(UPath(tmp_path / "dpo")) != before


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    model = load_model(BASE, MODEL)
    next(model.parameters()).data[0, 0] = math.nan
    with pytest.raises(TrainingError, match="not finite"):
        save_model(model, BASE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_steps_that_bfloat16_cannot_hold_add_up(tmp_path: Path) -> None:
    # A bfloat16 number near 0.05 is 0.00024 away from the next, so that a step of 2e-6 vanishes on its own.
    half = MODEL.model_copy(update={"dtype": "bfloat16"})
    settings = DPO.model_copy(update={"epochs": 100.0, "learning_rate": 2e-6})
    result = train_dpo(BASE, preference_rows(PAIRS), tmp_path / "half", settings, half, 1, lambda line: None)
    exact = train_dpo(BASE, preference_rows(PAIRS), tmp_path / "exact", settings, MODEL, 1, lambda line: None)
    assert result.steps == 100
    assert 0.05 < result.weights_changed == result.metrics()["weights_changed"]
    assert math.isclose(result.curve[-1]["loss"], exact.curve[-1]["loss"], rel_tol=0.02)
    saved = load_model(tmp_path / "half", half)
    assert {str(weight.dtype) for weight in saved.parameters()} == {"torch.bfloat16"}
    assert saved.config.to_dict()["dtype"] == "bfloat16"
    old = load_model(BASE, half).state_dict()
    different = sum(int((weight != old[name]).sum()) for name, weight in saved.named_parameters())
    assert different / saved.num_parameters() == result.weights_changed


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_stage_that_changes_almost_no_weight_is_refused(tmp_path: Path, dtype: str) -> None:
    model = MODEL.model_copy(update={"dtype": dtype})
    rate = {"bfloat16": 1e-7, "float32": 1e-12}[dtype]
    settings = SFT.model_copy(update={"epochs": 1.0, "learning_rate": rate})
    with pytest.raises(TrainingError, match=r"SFT changed only 0\.\d+% of the weights.*learning_rate"):
        train_sft(BASE, sft_rows(NEW_WORDS), tmp_path, settings, model, 1, lambda line: None)

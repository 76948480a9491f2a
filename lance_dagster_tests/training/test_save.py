"""What a saved model folder holds beside its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lance_dagster.storage.models import load_model, load_tokenizer
from lance_dagster.training.save import save_model
from lance_dagster.training.sft import train_sft
from lance_dagster_tests.storage.test_models import base_whose_end_token_is
from lance_dagster_tests.training.rows import sft_rows
from lance_dagster_tests.training.test_training import BASE, MODEL, NEW_WORDS, SFT

END_OF_TEXT, END_OF_TURN = 0, 4
CODE = """
from transformers import Qwen2Config, Qwen2ForCausalLM


class OwnConfig(Qwen2Config):
    model_type = "own"


class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize(
    ("configured", "saved"),
    [
        (END_OF_TEXT, [END_OF_TURN, END_OF_TEXT]),
        ([END_OF_TEXT, END_OF_TURN], [END_OF_TURN, END_OF_TEXT]),
        (END_OF_TURN, END_OF_TURN),
        (None, END_OF_TURN),
    ],
)
def test_the_generation_config_ends_texts_with_the_token_that_ends_a_turn(
    tmp_path: Path, configured: object, saved: object
) -> None:
    base = base_whose_end_token_is("<|endoftext|>", tmp_path / "base")
    for name, token in (("generation_config.json", configured), ("config.json", None)):
        path = base / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": token}))
    save_model(load_model(base, MODEL), base, tmp_path / "out")
    written = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert written["eos_token_id"] == saved
    assert written["pad_token_id"] == load_tokenizer(base).pad_token_id
    assert load_tokenizer(tmp_path / "out").eos_token_id == END_OF_TURN


def test_a_model_with_code_of_its_own_can_be_loaded_from_its_checkpoints(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    (base / "modeling_own.py").write_text(CODE)
    path = base / "config.json"
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    changes = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": own}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    model = MODEL.model_copy(update={"trust_remote_code": True})
    train_sft(base, sft_rows(NEW_WORDS), tmp_path / "sft", SFT, model, 1, lambda line: None)
    assert (tmp_path / "sft/modeling_own.py").read_text() == CODE
    shutil.rmtree(base)
    assert type(load_model(tmp_path / "sft", model)).__name__ == "OwnForCausalLM"

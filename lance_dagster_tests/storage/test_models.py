"""Models and tokenizers as they are loaded: the token that ends a turn, the device, and what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lance_dagster.errors import ArtifactError, SettingsError
from lance_dagster.settings import ModelSettings
from lance_dagster.storage.models import device_of, load_tokenizer
from lance_dagster_tests.tiny import REPOSITORY

BASE = REPOSITORY / "lance_dagster/mini/base"


def base_whose_end_token_is(token: str, folder: Path) -> Path:
    """The embedded model as hub base models are: its end token is not the one that its chat template uses."""
    shutil.copytree(BASE, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": token}))
    return folder


def test_the_end_token_is_the_one_that_closes_a_turn_of_the_chat_template(tmp_path: Path) -> None:
    assert load_tokenizer(BASE).eos_token == "<|im_end|>"
    folder = base_whose_end_token_is("<|endoftext|>", tmp_path / "model")
    assert load_tokenizer(folder).eos_token == "<|im_end|>"
    assert load_tokenizer(folder).pad_token == "<|endoftext|>"


def test_white_space_before_the_closing_token_does_not_hide_it(tmp_path: Path) -> None:
    folder = base_whose_end_token_is("<|endoftext|>", tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("'<|im_end|>'", "'\\n<|im_end|>\\n'"))
    assert load_tokenizer(folder).eos_token == "<|im_end|>"


@pytest.mark.parametrize(("old", "new"), [("<|im_end|>", ""), ("+ message['content']", "")])
def test_a_template_that_closes_no_turn_leaves_the_end_token_as_it_is(tmp_path: Path, old: str, new: str) -> None:
    folder = base_whose_end_token_is("<|endoftext|>", tmp_path / "model")
    template = folder / "chat_template.jinja"
    assert old in template.read_text()
    template.write_text(template.read_text().replace(old, new))
    assert load_tokenizer(folder).eos_token == "<|endoftext|>"


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "model")
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ArtifactError, match=r"model holds no tokenizer, or an empty one"):
        load_tokenizer(tmp_path / "model")


def test_a_gpu_that_is_not_there_is_a_wrong_setting() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert device_of(ModelSettings(path="x")).type == "cpu"
    with pytest.raises(SettingsError, match=r"model.device is 'cuda', but torch sees no GPU"):
        device_of(ModelSettings(path="x", device="cuda"))

"""Rebuilding the base model: short runs of the real command's code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from upath import UPath

from lance_dagster.mini.pretraining import PretrainingRecipe, pretrain
from lance_dagster.mini.tokenizer import build_tokenizer
from lance_dagster.mini.world import World
from lance_dagster.prompts.prompt_sets import load_prompt_set
from lance_dagster.storage.checkpoints import hash_folder
from lance_dagster.storage.models import load_tokenizer
from lance_dagster_tests.tiny import REPOSITORY

BASE = REPOSITORY / "lance_dagster/mini/base"
SHORT = replace(PretrainingRecipe(), steps=60)


def test_a_short_pretraining_learns_and_repeats_itself(tmp_path: Path) -> None:
    record = pretrain(tmp_path / "a", SHORT, log=lambda line: None)
    pretrain(tmp_path / "b", SHORT, log=lambda line: None)
    assert record["curve"][-1]["loss"] < record["curve"][0]["loss"] - 1.0
    assert hash_folder(UPath(tmp_path / "a")) == hash_folder(UPath(tmp_path / "b"))


def test_the_shipped_tokenizer_is_the_one_that_the_command_builds(tmp_path: Path) -> None:
    build_tokenizer(World(), load_prompt_set("mini_v1")).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads((BASE / "tokenizer.json").read_text())


def test_the_shipped_weights_are_of_the_recipe_and_small() -> None:
    record = json.loads((BASE / "pretraining.json").read_text())
    assert record["recipe"] == json.loads(json.dumps(_plain(PretrainingRecipe())))
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 4_000_000


def _plain(recipe: PretrainingRecipe) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(recipe)


def test_digits_and_capitals_are_single_tokens_and_text_survives() -> None:
    tokenizer = load_tokenizer(BASE)
    assert len(tokenizer("4096", add_special_tokens=False)["input_ids"]) == 4
    assert len(tokenizer("HKMP", add_special_tokens=False)["input_ids"]) == 4
    for item in ("Write HKMP backwards.", "It should be 12. The response is right. Score: 9"):
        assert tokenizer.decode(tokenizer(item, add_special_tokens=False)["input_ids"]) == item

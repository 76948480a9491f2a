"""A base model whose end token is not the one that its chat template closes turns with, such as Qwen2-7B."""

from __future__ import annotations

from pathlib import Path

from lance_dagster.engines.engine import GenerationRequest
from lance_dagster.engines.transformers_engine import TransformersEngine
from lance_dagster.settings import EngineSettings, SamplingSettings
from lance_dagster.training.dpo import train_dpo
from lance_dagster.training.sft import train_sft
from lance_dagster_tests.storage.test_models import base_whose_end_token_is
from lance_dagster_tests.training.rows import preference_rows, sft_rows
from lance_dagster_tests.training.test_training import DPO, MODEL, NEW_WORDS, PAIRS, SFT


def test_it_learns_to_stop_and_its_texts_end_there(tmp_path: Path) -> None:
    base = base_whose_end_token_is("<|endoftext|>", tmp_path / "base")
    config = base / "generation_config.json"
    config.write_text(config.read_text().replace('"eos_token_id": 4', '"eos_token_id": 0'))
    sft = train_sft(base, sft_rows(NEW_WORDS), tmp_path / "sft", SFT, MODEL, 1, lambda line: None)
    assert sft.gates["eos_in_labels"] == 1.0
    short = DPO.model_copy(update={"epochs": 1.0, "learning_rate": 1e-5})
    dpo = train_dpo(tmp_path / "sft", preference_rows(PAIRS), tmp_path / "dpo", short, MODEL, 1, lambda line: None)
    assert dpo.gates["eos_in_labels"] == 1.0
    engine = TransformersEngine(tmp_path / "dpo", "x", MODEL, EngineSettings())
    greedy = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=12)
    request = GenerationRequest(({"role": "user", "content": NEW_WORDS[0][0]},), greedy, 0)
    [completion] = engine.generate([request])
    assert (completion.text, completion.finish_reason) == ("lion", "stop")

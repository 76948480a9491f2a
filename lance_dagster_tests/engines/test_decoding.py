"""Continuous batches on random weights of several architectures."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from lance_dagster.engines.decoding import Limits, decode
from lance_dagster.settings import SamplingSettings

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=20)
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,  # so large that rows end at different steps
}
ENDS = {1, 2, 3}


def model_of(kind: str, **changes: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, "pad_token_id": 0, "eos_token_id": 1, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def prompts_of(count: int) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(4, 40) for _ in range(rng.randrange(1, 25))] for _ in range(count)]


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "bos_token_id": 1}
LFM2 = {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48, "block_auto_adjust_ff_dim": False}


@pytest.mark.parametrize("rows", [4, 24])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("mistral", {"sliding_window": 6}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
        ("lfm2", LFM2),
        ("gpt2", {**GPT2, "n_positions": 45}),
    ],
    ids=["qwen2", "llama", "sliding", "mixed", "convolution", "context_full"],
)
def test_greedy_tokens_are_those_of_the_models_own_generate(kind: str, changes: Mapping[str, Any], rows: int) -> None:
    """The longest prompt and its new tokens fill the context of the last model."""
    import torch

    model, prompts = model_of(kind, **changes), prompts_of(60)
    prompts[7], prompts[8] = prompts[3], [5] * 25
    new = decode(model, prompts, [0] * 60, GREEDY, ENDS, 0, Limits(rows, tokens=100_000))
    assert len({len(tokens) for tokens in new}) > 4
    for prompt, tokens in zip(prompts, new, strict=True):
        ids = torch.tensor([prompt])
        own = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=sorted(ENDS)
        )
        assert tokens == own[0, len(prompt) :].tolist()


@pytest.mark.parametrize("limits", [Limits(16, 600), Limits(50, 900)])
def test_a_batch_stays_within_its_limits(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> None:
    model = model_of("qwen2")
    forward = model.forward
    sizes = []

    def watched(**inputs: Any) -> Any:
        sizes.append(inputs["attention_mask"].shape)
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", watched)
    sampled = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=20)
    decode(model, prompts_of(100), list(range(100)), sampled, ENDS, 0, limits)
    assert max(rows for rows, _ in sizes) <= limits.rows
    assert max(rows * width for rows, width in sizes) <= limits.tokens


def test_a_row_that_ends_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    model, widths = model_of("qwen2"), []
    forward = model.forward

    def watched(**inputs: Any) -> Any:
        widths.append(inputs["input_ids"].shape[0])
        return forward(**inputs)

    prompts = prompts_of(64)
    monkeypatch.setattr(model, "forward", watched)
    new = decode(model, prompts, [0] * 64, GREEDY, ENDS, 0, Limits(rows=8, tokens=100_000))
    assert max(widths) <= 8
    in_turn = sum(max(map(len, new[start : start + 8])) for start in range(0, 64, 8))
    assert len(widths) < in_turn, "fewer passes than batches that wait for their longest row"


def test_limits_are_rows_and_rows_times_what_the_longest_may_come_to() -> None:
    limits = Limits(rows=4, tokens=100)
    assert limits.admitted([10, 10, 10, 10, 10], []) == 4
    assert limits.admitted([10, 40, 40, 10], []) == 2
    assert limits.admitted([10, 10], [30, 30]) == 1
    assert limits.admitted([10], [60]) == 0
    assert limits.admitted([500, 500], []) == 1, "one at least, or it would wait for ever"
    assert limits.admitted([], [10]) == 0

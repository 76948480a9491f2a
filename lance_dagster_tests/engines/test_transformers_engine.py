"""The transformers engine with the embedded model."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from lance_dagster.engines.engine import GenerationRequest
from lance_dagster.engines.registry import engine_identity
from lance_dagster.engines.transformers_engine import TransformersEngine
from lance_dagster.errors import ArtifactError, GenerationError
from lance_dagster.prompts.prompt_sets import load_prompt_set
from lance_dagster.settings import EngineSettings, ModelSettings, SamplingSettings
from lance_dagster.storage.models import load_model, load_tokenizer
from lance_dagster_tests.tiny import REPOSITORY

BASE = REPOSITORY / "lance_dagster/mini/base"
MODEL = ModelSettings(path=str(BASE), dtype="float32", device="cpu", threads=1)
PROMPTS = load_prompt_set("mini_v1")
SAMPLED = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=24)
INSTRUCTIONS = ["Add 3 and 4.", "Reverse the word ABC.", "Write CAT letter by letter with dashes.", "Is 7 even or odd?"]


def request(instruction: str, seed: int = 0, sampling: SamplingSettings = SAMPLED, kind: str = "new_instruction"):  # type: ignore[no-untyped-def]
    messages = PROMPTS.messages(kind, instruction=instruction, response="7")  # type: ignore[arg-type]
    return GenerationRequest(tuple(messages), sampling, seed)


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(BASE, "base", MODEL, EngineSettings())


def test_greedy_text_is_that_of_the_models_own_generate(engine: TransformersEngine) -> None:
    greedy = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=24)
    completions = engine.generate([request(i, sampling=greedy, kind="answer") for i in INSTRUCTIONS])
    tokenizer, model = load_tokenizer(BASE), load_model(BASE, MODEL)
    for instruction, completion in zip(INSTRUCTIONS, completions, strict=True):
        messages = [{"role": "user", "content": instruction}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert completion.text == tokenizer.decode(output, skip_special_tokens=True)
        assert completion.completion_tokens == len(output)
        assert completion.prompt_tokens == ids["input_ids"].shape[1]
        assert completion.finish_reason == "stop"


def test_a_request_has_the_same_text_whatever_it_is_batched_with(engine: TransformersEngine) -> None:
    requests = [request(i, seed) for i in INSTRUCTIONS for seed in range(8)]
    together = engine.generate(requests)
    backwards = engine.generate(requests[::-1])[::-1]
    alone = [engine.generate([r])[0] for r in requests]
    small = TransformersEngine(BASE, "base", MODEL, EngineSettings(max_batch_rows=3)).generate(requests)
    assert [c.text for c in together] == [c.text for c in alone] == [c.text for c in backwards]
    assert [c.text for c in small] == [c.text for c in together]


def test_seeds_give_different_samples_and_the_same_seed_the_same(engine: TransformersEngine) -> None:
    texts = [c.text for c in engine.generate([request(INSTRUCTIONS[0], seed) for seed in range(50)])]
    assert len(set(texts)) > 25
    assert texts == [c.text for c in engine.generate([request(INSTRUCTIONS[0], seed) for seed in range(50)])]


def first_tokens(engine: TransformersEngine, temperature: float, top_p: float, samples: int) -> Counter[str]:
    sampling = SamplingSettings(temperature=temperature, top_p=top_p, max_new_tokens=1)
    requests = [request("Add 3 and 4.", seed, sampling) for seed in range(samples)]
    return Counter(c.text for c in engine.generate(requests))


def first_probabilities(temperature: float) -> dict[str, float]:
    import torch

    tokenizer, model = load_tokenizer(BASE), load_model(BASE, MODEL)
    messages = PROMPTS.messages("new_instruction", instruction="Add 3 and 4.", response="7")
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        logits = model(**ids).logits[0, -1] / temperature
    probabilities = torch.softmax(logits, -1)
    return {tokenizer.decode([index]): float(p) for index, p in enumerate(probabilities)}


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_samples_follow_the_models_distribution_at_the_temperature(
    engine: TransformersEngine, temperature: float
) -> None:
    samples = 4000
    counts, expected = first_tokens(engine, temperature, 1.0, samples), first_probabilities(temperature)
    for token, probability in sorted(expected.items(), key=lambda pair: -pair[1])[:10]:
        deviation = (probability * (1 - probability) / samples) ** 0.5
        assert abs(counts[token] / samples - probability) < 5 * deviation + 1e-9, token


def test_top_p_keeps_the_smallest_set_that_reaches_it(engine: TransformersEngine) -> None:
    ranked = sorted(first_probabilities(1.0).items(), key=lambda pair: -pair[1])
    nucleus, mass = set(), 0.0
    for token, probability in ranked:
        if mass >= 0.5:
            break
        nucleus.add(token)
        mass += probability
    counts = first_tokens(engine, 1.0, 0.5, 1500)
    assert set(counts) <= nucleus
    assert all(counts[token] > 0 for token, probability in ranked[: len(nucleus)] if probability > 0.02)


def test_a_text_that_is_cut_off_says_so(engine: TransformersEngine) -> None:
    short = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=2)
    completions = engine.generate([request(INSTRUCTIONS[0], seed, short) for seed in range(20)])
    assert {c.finish_reason for c in completions} == {"length"}
    assert {c.completion_tokens for c in completions} == {2}


def test_a_prompt_over_the_context_fails_alone(engine: TransformersEngine) -> None:
    fitting, long = request("Add 3 and 4."), request("Add 3 and 4. " * 200)
    completions = engine.generate([fitting, long, fitting])
    assert completions[0] == completions[2] == engine.generate([fitting])[0]
    assert re.match(r"prompt_too_long: \d+ prompt tokens .* context of 512", completions[1].error or "")
    assert (completions[1].finish_reason, completions[1].attempts, completions[1].text) == ("error", 0, "")
    assert completions[1].prompt_tokens > 512
    assert engine.generate([long])[0] == completions[1]


def test_a_folder_without_a_model_or_chat_template_is_refused(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(BASE, tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").unlink()
    with pytest.raises(ArtifactError, match="no chat template"):
        TransformersEngine(tmp_path / "model", "x", MODEL, EngineSettings())
    shutil.copyfile(BASE / "chat_template.jinja", tmp_path / "model/chat_template.jinja")
    (tmp_path / "model/model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="cannot load the checkpoint"):
        TransformersEngine(tmp_path / "model", "x", MODEL, EngineSettings())


def test_sampling_is_what_the_settings_say_and_not_what_the_model_folder_brings(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    import json
    import shutil

    shutil.copytree(BASE, tmp_path / "model")
    path = tmp_path / "model/generation_config.json"
    own = {"do_sample": True, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "top_k": 1, "temperature": 0.1}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    other = TransformersEngine(tmp_path / "model", "base", MODEL, EngineSettings())
    requests = [request("Write CAT letter by letter with dashes.", seed) for seed in range(20)]
    assert [c.text for c in other.generate(requests)] == [c.text for c in engine.generate(requests)]


def test_the_type_of_the_weights_is_part_of_the_identity(engine: TransformersEngine) -> None:
    assert engine.identity == engine_identity("transformers", EngineSettings(), MODEL)
    assert engine.identity != engine_identity(
        "transformers", EngineSettings(), MODEL.model_copy(update={"dtype": "bfloat16"})
    )


def test_too_little_memory_names_the_batch_and_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def generate(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    small = TransformersEngine(BASE, "base", MODEL, EngineSettings(max_batch_tokens=4000))
    monkeypatch.setattr(small._model, "forward", generate)
    with pytest.raises(
        GenerationError,
        match=r"for batches of up to 256 .* lower engine.max_batch_tokens, which is 4,000",
    ):
        small.generate([request(i) for i in INSTRUCTIONS])

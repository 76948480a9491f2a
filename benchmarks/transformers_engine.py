"""The transformers engine against a plain left-padded `generate` in row order (goal: at least 2 times its tokens/s).

Prompts and answers of skewed length, four samples to a prompt as in the paper (K = 4), the embedded model on the CPU.
All generate the same requests and take turns; the ratio is that of the best round of each. A third way is the engine's
own batches one after another, which rows leave as they end but none joins.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lance_dagster.engines.engine import GenerationRequest
from lance_dagster.engines.transformers_engine import TransformersEngine
from lance_dagster.settings import EngineSettings, ModelSettings, SamplingSettings
from lance_dagster.storage.models import load_model, load_tokenizer

BASE = Path(__file__).parents[1] / "lance_dagster/mini/base"
MODEL = ModelSettings(path=str(BASE), dtype="float32", device="cpu")
SAMPLING = SamplingSettings(temperature=5.0, top_p=1.0, max_new_tokens=128)
PROMPTS, SAMPLES, BATCH, ROUNDS = 128, 4, 128, 3


def requests() -> list[GenerationRequest]:
    """Prompts of 10 to 300 tokens, most of them short; hot sampling makes answers of 2 to 100 tokens."""
    rng = random.Random(0)
    found = []
    for number in range(PROMPTS):
        words = min(60, 1 + int(rng.expovariate(1 / 8)))
        text = " ".join(rng.choice(["Add 3 and 4.", "Reverse ABC.", "Is 7 even?", "Write CAT."]) for _ in range(words))
        message = ({"role": "user", "content": text},)
        found += [GenerationRequest(message, SAMPLING, number * SAMPLES + sample) for sample in range(SAMPLES)]
    return found


def plain(asked: list[GenerationRequest]) -> Callable[[], int]:
    tokenizer, model = load_tokenizer(BASE, padding_side="left"), load_model(BASE, MODEL).eval()

    def run() -> int:
        tokens = 0
        for start in range(0, len(asked), BATCH):
            chats = [list(request.messages) for request in asked[start : start + BATCH]]
            batch = tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            )
            output = model.generate(
                **batch,
                do_sample=True,
                temperature=SAMPLING.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=SAMPLING.max_new_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = output[:, batch["input_ids"].shape[1] :]
            ended = (new == tokenizer.eos_token_id).int().argmax(1)
            tokens += int(torch.where((new == tokenizer.eos_token_id).any(1), ended + 1, new.shape[1]).sum())
        return tokens

    return run


def engine(asked: list[GenerationRequest]) -> tuple[Callable[[], int], Callable[[], int]]:
    """The engine as it is, and one batch after another, of the same rows in the same order of lengths."""
    loaded = TransformersEngine(BASE, "base", MODEL, EngineSettings(max_batch_rows=BATCH))
    by_length = sorted(asked, key=lambda request: len(request.messages[-1]["content"]))
    batches = [by_length[start : start + BATCH] for start in range(0, len(asked), BATCH)]

    def tokens(requests: list[GenerationRequest]) -> int:
        return sum(completion.completion_tokens for completion in loaded.generate(requests))

    return lambda: tokens(asked), lambda: sum(map(tokens, batches))


def main() -> None:
    torch.manual_seed(0)
    asked = requests()
    joining, in_turn = engine(asked)
    ways = {"plain_generate": plain(asked), "batches_in_turn": in_turn, "transformers_engine": joining}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            started = time.perf_counter()
            tokens = run()
            rates[name].append(tokens / (time.perf_counter() - started))
            print(f"{name}: {tokens} tokens, {rates[name][-1]:,.0f} tokens/s")
    best = {name: max(values) for name, values in rates.items()}
    ours = best["transformers_engine"]
    result = {
        "tokens_per_second": {name: round(rate) for name, rate in best.items()},
        "ratio": round(ours / best["plain_generate"], 2),
        "joining_over_in_turn": round(ours / best["batches_in_turn"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

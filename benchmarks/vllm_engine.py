"""The vllm engine, through shards, cache and accounts, against vLLM itself.

* vLLM called directly with all prompts at once (goal: the stage reaches at least 95 % of its tokens/s);
* vLLM called one prompt at a time with n = 4, as the reference code of LANCE does (goal: at least 5 times).

All three use one loaded engine and the same prompts and sampling, and take turns. Needs `make vllm`.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from upath import UPath

from lance_dagster.engines.batch import BatchRunner
from lance_dagster.engines.engine import GenerationRequest
from lance_dagster.engines.vllm_engine import VllmEngine
from lance_dagster.prompts.prompt_sets import load_prompt_set
from lance_dagster.settings import EngineSettings, ModelSettings, SamplingSettings

BASE = Path(__file__).parents[1] / "lance_dagster/mini/base"
MODEL = ModelSettings(path=str(BASE), dtype="float32")
SAMPLING = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=32)
PROMPTS, SAMPLES, ALONE, ROUNDS = 512, 4, 48, 3


def main() -> None:
    from vllm import SamplingParams

    settings = EngineSettings.model_validate({"kind": "vllm", "shard_rows": 1024})
    engine = VllmEngine(BASE, "base", MODEL, settings)
    prompts = load_prompt_set("mini_v1")
    chats = [
        tuple(prompts.messages("new_instruction", instruction=f"Add {i} and {i % 7}.", response=str(i)))
        for i in range(PROMPTS)
    ]
    requests = [GenerationRequest(chat, SAMPLING, i * SAMPLES + k) for i, chat in enumerate(chats) for k in range(4)]
    encoded = [{"prompt_token_ids": engine._prompts.encode(request)} for request in requests]
    sampling = [engine._sampling(request.sampling, request.seed) for request in requests]
    four = SamplingParams(
        temperature=1.0, max_tokens=32, n=SAMPLES, stop_token_ids=sorted(engine._prompts.ends), detokenize=False
    )
    rates: dict[str, list[float]] = {"stage": [], "vllm_direct": [], "one_at_a_time": []}

    def timed(name: str, run: object) -> None:
        started = time.perf_counter()
        tokens = run()  # type: ignore[operator]
        rates[name].append(tokens / (time.perf_counter() - started))
        print(f"{name}: {tokens} tokens, {rates[name][-1]:,.0f} tokens/s", flush=True)

    def stage() -> int:
        with tempfile.TemporaryDirectory() as folder:
            runner = BatchRunner(lambda: engine, "base", engine.identity, UPath(folder), 1024, lambda line: None)
            runner.generate(requests, "new_instruction")
            return runner.usage.completion_tokens

    def direct() -> int:
        outputs = engine._llm.generate(encoded, sampling, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def alone() -> int:
        tokens = 0
        for prompt in encoded[: ALONE * SAMPLES : SAMPLES]:
            (output,) = engine._llm.generate([prompt], four, use_tqdm=False)
            tokens += sum(len(each.token_ids) for each in output.outputs)
        return tokens

    engine._llm.generate(encoded[:64], sampling[:64], use_tqdm=False)
    for _ in range(ROUNDS):
        timed("vllm_direct", direct)
        timed("stage", stage)
        timed("one_at_a_time", alone)
    engine.close()
    best = {name: max(values) for name, values in rates.items()}
    result = {
        "tokens_per_second": {name: round(rate) for name, rate in best.items()},
        "stage_over_direct": round(best["stage"] / best["vllm_direct"], 3),
        "stage_over_one_at_a_time": round(best["stage"] / best["one_at_a_time"], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

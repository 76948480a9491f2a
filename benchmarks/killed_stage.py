"""A stage of generation that is killed twenty times at random moments, with a real engine: is every row there once?

A program generates 16,384 answers with the embedded model in shards of 64, and is killed with SIGKILL between 0 and
KILL_WITHIN seconds after its engine has loaded, again and again; the last one may end. Then the cache must hold every
request exactly once, nothing half-written is read, the texts are those of a stage that nobody disturbed (rounding in
other batches aside), and no process that holds a model is left. Without a name it runs `transformers`;
`python benchmarks/killed_stage.py ray vllm openai` the others, which take minutes to tens of minutes each.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from upath import UPath

from lance_dagster.engines.batch import BatchRunner
from lance_dagster.engines.completion_cache import CompletionCache
from lance_dagster.engines.engine import GenerationRequest, TextEngine
from lance_dagster.engines.registry import ENGINES, engine_identity
from lance_dagster.prompts.prompt_sets import load_prompt_set
from lance_dagster.settings import EngineSettings, ModelSettings, SamplingSettings
from lance_dagster.storage.tables import read_table

BASE = Path(__file__).parents[1] / "lance_dagster/mini/base"
REQUESTS, SHARD, KILLS, KILL_WITHIN = 16_384, 64, 20, 0.5
MODEL = ModelSettings(path=str(BASE), dtype="float32", device="auto", threads=1)


def settings(kind: str) -> EngineSettings:
    return EngineSettings.model_validate(
        {"kind": kind, "shard_rows": SHARD, "vllm": {"cache_gb": 0.25}, "ray": {"workers": 2, "cpus_per_worker": 0.5}}
    )


def requests() -> list[GenerationRequest]:
    prompts, sampling = load_prompt_set("mini_v1"), SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=24)
    return [
        GenerationRequest(tuple(prompts.messages("answer", instruction=f"Add {i % 128} and {i // 128}.")), sampling, i)
        for i in range(REQUESTS)
    ]


def runner(kind: str, folder: Path, loaded: Path | None = None) -> BatchRunner:
    def load() -> TextEngine:
        engine = ENGINES[kind](BASE, "base", MODEL, settings(kind))
        if loaded is not None:
            loaded.touch()
        return engine

    identity = engine_identity(kind, settings(kind), MODEL)
    return BatchRunner(load, "base", identity, UPath(folder), SHARD, lambda line: None)


def stage(kind: str, folder: str, loaded: str) -> None:
    """What is killed."""
    made = runner(kind, Path(folder), Path(loaded))
    made.generate(requests(), "answer")
    if made._engine is not None:
        made._engine.close()


def rows_of(folder: Path) -> list[str]:
    shards = [read_table(shard.path) for shard in CompletionCache(UPath(folder), print).shards()]
    return [request for shard in shards for request in shard["request"].to_pylist()]


def check(kind: str, rng: random.Random) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as home:
        folder, loaded = Path(home) / "killed", Path(home) / "loaded"
        kills, progress = 0, [0]
        while True:
            loaded.unlink(missing_ok=True)
            command = [sys.executable, __file__, "--stage", kind, str(folder), str(loaded)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not loaded.exists():
                time.sleep(0.01)
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            if kills == KILLS:
                assert process.wait() == 0, f"{kind}: the stage that nobody killed failed"
                break
            time.sleep(rng.uniform(0, KILL_WITHIN))
            if process.poll() is not None:
                break  # it was quicker than the next kill
            process.kill()
            process.wait()
            kills += 1
            # Two agents of a Ray node hold no model, and end by themselves a minute or more later.
            models = [each for each in family if not (each.is_running() and each.name().endswith("Agent"))]
            _, left = psutil.wait_procs(models, timeout=60)
            left = [each for each in left if each.status() != psutil.STATUS_ZOMBIE]
            assert not left, f"{kind}: {left} outlived the program that was killed"
            progress.append(len(rows_of(folder)))
            print(f"{kind}: kill {kills}, {progress[-1]} of {REQUESTS} rows are kept", flush=True)
        rows = rows_of(folder)
        assert len(rows) == len(set(rows)) == REQUESTS, f"{kind}: {len(rows)} rows, {len(set(rows))} different ones"
        assert progress == sorted(progress), "no row was lost"
        killed = runner(kind, folder).generate(requests(), "answer")
        whole = runner(kind, Path(home) / "whole")
        undisturbed = whole.generate(requests(), "answer")
        if whole._engine is not None:
            whole._engine.close()
        same = sum(a == b for a, b in zip(killed, undisturbed, strict=True))
        return {"kills": kills, "rows": len(rows), "same_texts": same}


def main() -> None:
    chosen = sys.argv[1:] or ["transformers"]
    rng = random.Random(0)
    print(json.dumps({kind: check(kind, rng) for kind in chosen}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        stage(*sys.argv[2:5])
    else:
        main()

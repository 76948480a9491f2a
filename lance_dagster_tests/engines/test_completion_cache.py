"""The cache of completions: what survives SIGKILL, what is found, what is pruned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from upath import UPath

from lance_dagster.engines.batch import BatchRunner
from lance_dagster.engines.completion_cache import CompletionCache
from lance_dagster.engines.engine import Completion, GenerationRequest
from lance_dagster.engines.scripted_engine import ScriptedEngine
from lance_dagster.settings import SamplingSettings
from lance_dagster.storage.tables import read_table
from lance_dagster_tests.tiny import REPOSITORY, tiny_experiment

# One stage of 200 requests in shards of 7, killed at random moments: children of one process, which is quick.
KILLED_STAGE = """
import json, os, random, signal, sys, time
from upath import UPath
from lance_dagster.engines.batch import BatchRunner
from lance_dagster.engines.engine import GenerationRequest
from lance_dagster.engines.scripted_engine import ScriptedEngine
from lance_dagster.settings import SamplingSettings

cache, kills = UPath(sys.argv[1]), int(sys.argv[2])
requests = [GenerationRequest(({"role": "user", "content": f"Say {i}"},), SamplingSettings(), i) for i in range(200)]

def answer(request):
    time.sleep(0.0004)
    return f"text {request.seed}"

def stage(folder=cache):
    engine = ScriptedEngine(answer)
    return BatchRunner(lambda: engine, "scripted", "scripted", folder, 7, lambda line: None), engine

random.seed(5)
started = time.monotonic()
stage(cache / "undisturbed")[0].generate(requests, "review")
whole = time.monotonic() - started
died = 0
for _ in range(kills):
    child = os.fork()
    if child == 0:
        stage()[0].generate(requests, "review")
        os._exit(0)
    time.sleep(random.uniform(0.0, whole / 8))
    os.kill(child, signal.SIGKILL)
    died += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
runner, engine = stage()
texts = [completion.text for completion in runner.generate(requests, "review")]
print(json.dumps({"died": died, "texts": texts, "asked_at_last": len(engine.requests)}))
"""


def test_a_stage_that_is_killed_twenty_times_has_each_row_exactly_once(tmp_path: Path) -> None:
    output = subprocess.run(
        [sys.executable, "-c", KILLED_STAGE, str(tmp_path), "20"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    result = json.loads(output.splitlines()[-1])
    assert result["died"] >= 10, "most runs were killed before their end"
    assert result["texts"] == [f"text {i}" for i in range(200)]
    assert result["asked_at_last"] < 200, "what was committed is not generated again"
    kept = [
        key
        for path in (tmp_path / "scripted/review").glob("*.parquet")
        for key in read_table(UPath(path))["request"].to_pylist()
    ]
    assert len(kept) == len(set(kept)) == 200


def request(seed: int) -> GenerationRequest:
    return GenerationRequest(({"role": "user", "content": "Say"},), SamplingSettings(), seed)


def cache_of(folder: Path) -> CompletionCache:
    return CompletionCache(UPath(folder), lambda line: None)


def filled(folder: Path, shards: int = 4) -> CompletionCache:
    """Shards of ten rows, the first one least recently used, a day apart."""
    cache = cache_of(folder)
    for number in range(shards):
        rows = {f"{number}-{i}": Completion(f"text {number} {i}" * 50, "stop", 3, 2) for i in range(10)}
        cache.add("model", "review", rows)
        path = next(shard.path for shard in cache.shards() if shard.used > time.time() - 43_000)
        moment = time.time() - 86_400 * (shards - number)
        os.utime(path.path, (moment, moment))
    return cache


def test_shards_are_listed_with_their_rows_and_size(tmp_path: Path) -> None:
    shards = list(filled(tmp_path).shards())
    assert [(s.model_digest, s.kind, s.rows) for s in shards] == [("model", "review", 10)] * 4
    assert all(s.size == Path(s.path.path).stat().st_size for s in shards)


def test_pruning_removes_the_least_recently_used_until_the_rest_fits(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    newest = sorted(cache.shards(), key=lambda s: s.used)[2:]
    removed = cache.prune(most_bytes=sum(s.size for s in newest))
    assert len(removed) == 2 and sorted(cache.shards(), key=lambda s: s.used) == newest
    assert cache.find("model", "review", ["0-1", "3-1"]).keys() == {"3-1"}


def test_what_is_read_counts_as_used(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    assert cache.find("model", "review", ["0-1"])
    cache.prune(unused_days=1.5)
    assert cache.find("model", "review", ["0-1", "1-1", "2-1", "3-1"]).keys() == {"0-1", "3-1"}


def test_pruning_to_nothing_and_without_a_limit(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    assert cache.prune() == []
    assert len(cache.prune(most_bytes=0)) == 4 and list(cache.shards()) == []
    assert cache_of(tmp_path / "none").prune(most_bytes=0) == []


def test_what_was_pruned_is_generated_again_and_is_the_same(tmp_path: Path) -> None:
    requests = [request(seed) for seed in range(30)]

    def texts() -> list[str]:
        engine = ScriptedEngine(lambda r: f"text {r.seed}")
        runner = BatchRunner(lambda: engine, "m", "scripted", UPath(tmp_path), 10, lambda line: None)
        runner.load = lambda: ScriptedEngine(lambda r: f"text {r.seed}", "m")
        return [c.text for c in runner.generate(requests, "review")]

    before = texts()
    assert cache_of(tmp_path).prune(most_bytes=1)
    assert texts() == before


def test_more_samples_generate_only_the_missing_ones(tmp_path: Path) -> None:
    """The seed of a sample is a digest of its row and its number, so K = 4 has the samples of K = 2."""
    from lance_dagster_tests.construction.scripted import bench, seed

    low = seed("ice", "3")
    few = bench(tmp_path, construction={"samples": 2, "responses_per_instruction": 1})
    few.candidates(few.review(low))
    more = bench(tmp_path, construction={"samples": 4, "responses_per_instruction": 1})
    more.candidates(more.review(low))
    assert len(few.asked("new_instruction")) == 2
    assert len(more.asked("new_instruction")) == 2, "two of four were there"
    assert more.asked("review") == []


def test_a_stage_keeps_the_size_limit_of_the_settings(tmp_path: Path) -> None:
    tiny = tiny_experiment(tmp_path, engine={"cache_gb": 1e-9})
    lines: list[str] = []
    CompletionCache(tiny.experiment.store.cache, lines.append).add("m", "review", {"k": Completion("x", "stop", 1, 1)})
    tiny.experiment._prune_cache(lines.append)
    assert list(CompletionCache(tiny.experiment.store.cache, lines.append).shards()) == []
    assert "removed 1 rows" in lines[-1]


def test_the_command_shows_and_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from lance_dagster import cli

    tiny = tiny_experiment(tmp_path)
    filled(Path(str(tiny.experiment.store.cache)))
    monkeypatch.setattr(cli, "_experiment", lambda name: tiny.experiment)
    shown = CliRunner().invoke(cli.main, ["cache"])
    assert shown.exit_code == 0 and "review" in shown.output and "40" in shown.output and "unknown" in shown.output
    pruned = CliRunner().invoke(cli.main, ["cache", "--unused-days", "1.5"])
    assert "removed 30 completions" in pruned.output
    empty = CliRunner().invoke(cli.main, ["cache", "--keep-gb", "0"])
    assert "no cached completions" in empty.output

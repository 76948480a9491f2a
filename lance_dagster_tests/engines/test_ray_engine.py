"""The ray engine on a cluster of two nodes in one machine, with the embedded model."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lance_dagster.engines.engine import GenerationRequest
from lance_dagster.engines.ray_engine import RayEngine
from lance_dagster.engines.registry import engine_identity, gpus_of
from lance_dagster.engines.transformers_engine import TransformersEngine
from lance_dagster.errors import ClusterError, GenerationError
from lance_dagster.prompts.prompt_sets import load_prompt_set
from lance_dagster.settings import EngineSettings, ModelSettings, SamplingSettings
from lance_dagster_tests.engines.test_tether import ended
from lance_dagster_tests.ray_nodes import two_nodes
from lance_dagster_tests.tiny import REPOSITORY

BASE = REPOSITORY / "lance_dagster/mini/base"
MODEL = ModelSettings(path=str(BASE), dtype="float32", device="cpu", threads=1)
PROMPTS = load_prompt_set("mini_v1")
SAMPLED = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=12)


def settings(**ray: Any) -> EngineSettings:
    return EngineSettings.model_validate({"kind": "ray", "max_batch_rows": 64, "ray": ray})


def requests(count: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(tuple(PROMPTS.messages("answer", instruction=f"Add {i % 50} and {i // 50}.")), SAMPLED, i)
        for i in range(count)
    ]


def test_no_cluster_at_the_address() -> None:  # first: a program that is in a cluster stays in it
    with pytest.raises(ClusterError, match=r"engine.ray.address: no Ray cluster at 127.0.0.1:1 .*ray status"):
        RayEngine(BASE, "base", MODEL, settings(address="127.0.0.1:1"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers do not fit on one of its nodes."""
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def engine(cluster: Any) -> Iterator[RayEngine]:
    engine = RayEngine(BASE, "base", MODEL, settings(address=cluster.address, workers=2))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def alone() -> TransformersEngine:
    return TransformersEngine(BASE, "base", MODEL, EngineSettings(max_batch_rows=64))


def places(engine: RayEngine) -> list[tuple[str, int]]:
    """Node and process id of each worker."""
    import ray

    return ray.get([worker.place.remote() for worker in engine._workers])


def test_the_texts_are_those_of_the_inner_engine_in_the_order_of_the_requests(
    engine: RayEngine, alone: TransformersEngine
) -> None:
    asked = requests(600)
    ours, theirs = engine.generate(asked), alone.generate(asked)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    assert same >= 0.98 * len(asked), "batches are cut otherwise, so rounding may tip a sample, nothing else"
    assert engine.identity == alone.identity == engine_identity("ray", settings(), MODEL)
    assert engine.model_digest == "base"


def test_the_workers_are_on_two_nodes(engine: RayEngine) -> None:
    assert len({node for node, _ in places(engine)}) == 2


def test_a_worker_that_is_killed_is_replaced_and_each_row_exists_once(
    engine: RayEngine, alone: TransformersEngine
) -> None:
    asked, before = requests(4800), [process for _, process in places(engine)]
    killed = threading.Timer(0.2, os.kill, (before[0], signal.SIGKILL))
    killed.start()
    answers = engine.generate(asked)
    killed.join()
    assert ended(before[0])
    assert len(answers) == len(asked)
    assert all(answer.error is None for answer in answers)
    sample = slice(0, 600)
    same = sum(a.text == b.text for a, b in zip(answers[sample], alone.generate(asked[sample]), strict=True))
    assert same >= 0.98 * 600
    after = [process for _, process in places(engine)]
    assert after[0] != before[0] and after[1] == before[1]


def test_a_prompt_that_is_too_long_fails_alone(engine: RayEngine) -> None:
    long = GenerationRequest(tuple(PROMPTS.messages("answer", instruction="Add 3 and 4. " * 200)), SAMPLED, 0)
    first, failed, last = engine.generate([requests(1)[0], long, requests(1)[0]])
    assert (failed.error or "").startswith("prompt_too_long: ")
    assert first == last and first.error is None


def test_more_workers_than_the_cluster_holds_are_refused_with_what_it_has(cluster: Any) -> None:
    started = time.monotonic()
    with pytest.raises(GenerationError, match=r"1 of 1 Ray workers .* ask for 64 CPUs .*'CPU': 2"):
        RayEngine(BASE, "base", MODEL, settings(address=cluster.address, cpus_per_worker=64, start_timeout_s=2))
    assert time.monotonic() - started < 60


def test_a_checkpoint_that_the_inner_engine_cannot_load_is_named(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(GenerationError, match=r"on a Ray worker|a Ray worker died"):
        RayEngine(tmp_path, "broken", MODEL, settings(address=cluster.address, cpus_per_worker=0))


def test_it_holds_the_gpus_of_all_workers() -> None:
    assert gpus_of("ray", settings(workers=4, gpus_per_worker=2), MODEL) == 8
    assert gpus_of("ray", settings(workers=3), MODEL) == 0

"""The openai engine against a server that misbehaves on purpose, and against a real vLLM server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lance_dagster.engines.engine import Completion, GenerationRequest
from lance_dagster.engines.openai_engine import OpenAIEngine
from lance_dagster.engines.registry import engine_identity
from lance_dagster.engines.transformers_engine import TransformersEngine
from lance_dagster.errors import GenerationError, SettingsError
from lance_dagster.prompts.prompt_sets import load_prompt_set
from lance_dagster.settings import EngineSettings, ModelSettings, SamplingSettings
from lance_dagster_tests.construction.scripted import settings
from lance_dagster_tests.engines.misbehaving import Misbehaving, misbehaving_server
from lance_dagster_tests.tiny import REPOSITORY

BASE = REPOSITORY / "lance_dagster/mini/base"
MODEL = ModelSettings(path=str(BASE), dtype="float32", device="auto", threads=1)
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=24)


def request(prompt: str, seed: int = 0, sampling: SamplingSettings = GREEDY) -> GenerationRequest:
    return GenerationRequest(({"role": "user", "content": prompt},), sampling, seed)


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with misbehaving_server() as running:
        yield running


def engine_for(server: Misbehaving, **changes: Any) -> OpenAIEngine:
    chosen = {"base_url": server.url, "backoff_s": 0.01, "timeout_s": 1.0, "attempts": 4, **changes}
    return OpenAIEngine(BASE, "scripted", MODEL, EngineSettings.model_validate({"kind": "openai", "openai": chosen}))


def ask(server: Misbehaving, *prompts: str, **changes: Any) -> list[Completion]:
    return engine_for(server, **changes).generate([request(prompt) for prompt in prompts])


def test_answers_come_in_order_with_their_counts(server: Misbehaving) -> None:
    prompts = [f"hello {i}" for i in range(100)]
    assert ask(server, *prompts) == [Completion(f"you said {p}", "stop", 3, 2) for p in prompts]
    assert ask(server, "truncated text")[0].finish_reason == "length"


def test_the_request_carries_the_sampling_and_a_seed_that_fits_32_bits(server: Misbehaving) -> None:
    sampling = SamplingSettings(temperature=0.3, top_p=0.8, max_new_tokens=7)
    engine_for(server).generate([request("hello", 2**62 + 5, sampling)])
    body = server.bodies[-1]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["model"]) == (0.3, 0.8, 7, "scripted")
    assert body["seed"] == 5


@pytest.mark.parametrize(
    "prompt",
    [
        *("status 429 twice", "status 500 twice", "status 503 twice", "cut twice", "half twice", "slow once"),
        *("malformed twice", "nonsense twice"),
    ],
)
def test_what_fails_in_passing_is_tried_again(server: Misbehaving, prompt: str) -> None:
    before, answer, after = ask(server, "before", prompt, "after")
    assert answer == Completion(f"you said {prompt}", "stop", 3, 2, attempts=server.attempts[prompt])
    assert answer.attempts == (2 if "once" in prompt else 3)
    assert before.attempts == after.attempts == 1


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("status 500 always", "status_500: this is 500 (tried 4 times)"),
        ("cut always", "connection: "),
        ("half always", "connection: "),
        ("malformed always", "malformed: not a chat completion"),
        ("slow always", "timeout: no answer within 0.2 s"),
    ],
)
def test_what_fails_every_time_fails_alone(server: Misbehaving, prompt: str, reason: str) -> None:
    before, lost, after = ask(server, "before", prompt, "after", timeout_s=0.2)
    assert (lost.error or "").startswith(reason)
    assert (lost.finish_reason, lost.attempts, server.attempts[prompt]) == ("error", 4, 4)
    assert before.error is None and after.error is None


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("too long", "prompt_too_long: "), ("status 422 always", "refused: status 422"), ("filtered text", "refused: ")],
)
def test_what_the_server_refuses_is_not_tried_again(server: Misbehaving, prompt: str, reason: str) -> None:
    before, lost, after = ask(server, "before", prompt, "after")
    assert (lost.error or "").startswith(reason)
    assert (lost.finish_reason, lost.attempts, server.attempts[prompt]) == ("error", 1, 1)
    assert before.error is None and after.error is None


def test_the_server_decides_how_long_to_wait(server: Misbehaving) -> None:
    ask(server, "status 429 wait once")
    first, second = server.times["status 429 wait once"]
    assert second - first >= 1.0


def test_no_more_requests_are_open_than_the_settings_allow(server: Misbehaving) -> None:
    ask(server, *(f"hello {i}" for i in range(60)), concurrency=7)
    assert 1 < server.most_open <= 7


def test_the_key_comes_from_the_environment_and_is_never_shown(
    server: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "sk-secret"
    monkeypatch.setenv("MY_KEY", "sk-secret")
    assert ask(server, "hello", key_variable="MY_KEY")[0].error is None
    monkeypatch.setenv("MY_KEY", "sk-other")
    with pytest.raises(GenerationError, match=r"check engine\.openai\.base_url and the key in MY_KEY") as caught:
        ask(server, "hello", key_variable="MY_KEY")
    assert "sk-other" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"engine\.openai\.key"):
        settings(engine={"kind": "openai", "openai": {"key": "sk-secret"}})


def test_a_key_that_stops_to_be_valid_stops_the_stage(server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    engine = engine_for(server)
    server.key = "sk-changed"
    with pytest.raises(GenerationError, match="answered 401: check the key") as caught:
        engine.generate([request("hello")])
    assert "sk-secret" not in str(caught.value), "the server echoes the key"


def test_another_model_than_m_t_is_refused(server: Misbehaving) -> None:
    server.served = "some/model"
    with pytest.raises(GenerationError, match=r"serves some/model, not scripted.*--served-model-name scripted"):
        ask(server, "hello")
    assert ask(server, "hello", model="some/model")[0].error is None
    assert server.bodies[-1]["model"] == "some/model"


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    chosen = EngineSettings.model_validate({"kind": "openai", "openai": {"base_url": url}})
    with pytest.raises(GenerationError, match=f"{url} does not list its models"):
        OpenAIEngine(BASE, "x", MODEL, chosen)


def test_control_tokens_do_not_leave_for_the_server(server: Misbehaving) -> None:
    ask(server, "hello <|im_end|> [INST] </s> you")
    assert server.bodies[-1]["messages"][-1]["content"] == "hello < |im_end|> [ INST] < /s> you"


def test_a_named_model_is_part_of_the_identity() -> None:
    def identity(**openai: Any) -> str:
        return engine_identity("openai", EngineSettings.model_validate({"kind": "openai", "openai": openai}), MODEL)

    own = identity()
    assert identity(concurrency=3, timeout_s=1) == own
    assert identity(base_url="http://127.0.0.1:1/v1") == own, "M_t by its digest, wherever it is served"
    assert identity(base_url="http://127.0.0.1:1/v1", model="a") != identity(
        base_url="http://127.0.0.1:1/v1", model="b"
    )


# A real server


@pytest.fixture(scope="module")
def served() -> Iterator[OpenAIEngine]:
    pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")
    chosen = EngineSettings.model_validate({"kind": "openai", "vllm": {"cache_gb": 0.25}})
    engine = OpenAIEngine(BASE, "0123abcd", MODEL, chosen)
    yield engine
    engine.close()


def test_a_real_server_gives_the_texts_of_transformers(served: OpenAIEngine) -> None:
    prompts = load_prompt_set("mini_v1")
    requests = [
        GenerationRequest(tuple(prompts.messages(kind, instruction=f"Add {a} and {b}.", response="7")), GREEDY, 0)
        for a in range(8)
        for b in range(8)
        for kind in ("review", "new_instruction")
    ]
    ours = served.generate(requests)
    theirs = TransformersEngine(BASE, "base", MODEL, EngineSettings()).generate(requests)
    assert [c.finish_reason for c in ours] == [c.finish_reason for c in theirs]
    assert sum(a.text == b.text for a, b in zip(ours, theirs, strict=True)) >= 0.98 * len(requests)
    assert [c.prompt_tokens for c in ours] == [c.prompt_tokens for c in theirs]


def test_a_real_server_refuses_a_long_prompt_and_answers_the_others(served: OpenAIEngine) -> None:
    first, long, last = served.generate(
        [request("Add 3 and 4."), request("Add 3 and 4. " * 200), request("Add 1 and 1.")]
    )
    assert (long.error or "").startswith("prompt_too_long: ")
    assert (first.text, last.text) == ("7", "2")


def test_a_server_that_dies_stops_the_stage_with_what_it_said(served: OpenAIEngine, tmp_path: Path) -> None:
    import psutil

    assert served.generate([request("Add 3 and 4.")])[0].text == "7"
    family = psutil.Process().children(recursive=True)
    (python,) = [p for p in family if "api_server" in " ".join(p.cmdline()) and "tether" not in " ".join(p.cmdline())]
    python.kill()
    with pytest.raises(GenerationError, match="the vLLM server of model 0123abcd ended with status"):
        served.generate([request("Add 3 and 4.")])
    served.close()
    _, alive = psutil.wait_procs([p for p in family if p.is_running()], timeout=30)
    assert [p for p in alive if "api_server" in " ".join(p.cmdline()) or "VLLM" in p.name()] == []

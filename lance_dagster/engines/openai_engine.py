"""The `openai` engine: requests to any server with the OpenAI chat completions interface.

Each request is an HTTP call of its own; a bounded number is open at a time, and what fails in passing (429, 5xx, a cut
connection, a time-out) is tried again with growing pauses. https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lance_dagster.engines.engine import Completion, GenerationRequest, failed
from lance_dagster.errors import GenerationError
from lance_dagster.prompts.neutralise import ControlTokens
from lance_dagster.settings import EngineSettings, ModelSettings, SeedSettings

if TYPE_CHECKING:
    import httpx

_FATAL = {401: "the key", 403: "the key's permissions", 404: "engine.openai.base_url and model"}
_TOO_LONG = ("context_length_exceeded", "context length", "maximum model length")
_LONGEST_PAUSE = 60.0  # seconds
_EXCERPT = 300  # characters of an answer that go into an error
_SEEDS = 1 << 31  # some servers take 32 bits


def openai_identity(model: ModelSettings, engine: EngineSettings) -> str:
    """A server's model by address and name, where the settings name one; else M_t on a vLLM server."""
    chosen = engine.openai
    if chosen.base_url is None or chosen.model is None:
        return f"openai/{model.dtype}"
    return f"openai/{chosen.base_url.rstrip('/')}/{chosen.model}"


class OpenAIEngine:
    """Asks the server that ``engine.openai`` names, or one that is started for the checkpoint and ended by ``close``.

    Raises GenerationError where the server does not answer, refuses the key, or serves another model than M_t.
    """

    def __init__(self, folder: Path, digest: str, model: ModelSettings, engine: EngineSettings) -> None:
        from lance_dagster.engines.vllm_server import vllm_server

        self.model_digest = digest
        self.identity = openai_identity(model, engine)
        self._settings = engine.openai
        self._model = engine.openai.model or digest
        self._key = os.environ.get(engine.openai.key_variable)
        self._control = _control_tokens(folder)
        self._check: Callable[[], None] = lambda: None
        with ExitStack() as stack:
            if engine.openai.base_url is None:
                server = stack.enter_context(vllm_server(folder, digest, model, engine))
                self._url, self._check = server.url, server.check
            else:
                self._url = engine.openai.base_url.rstrip("/")
            asyncio.run(self._check_model())
            self._stack = stack.pop_all()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        return asyncio.run(self._generate(requests))

    def close(self) -> None:
        self._stack.close()

    def _client(self) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(
            headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
            timeout=httpx.Timeout(self._settings.timeout_s, pool=None),
            trust_env=self._settings.base_url is not None,  # a proxy of the environment is not asked for an own server
            limits=httpx.Limits(max_connections=self._settings.concurrency),
        )

    async def _generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        free = asyncio.Semaphore(self._settings.concurrency)

        async def answered(request: GenerationRequest) -> Completion:
            async with free:
                return await self._complete(client, request)

        async with self._client() as client:
            return await asyncio.gather(*(answered(request) for request in requests))

    async def _complete(self, client: httpx.AsyncClient, request: GenerationRequest) -> Completion:
        """The answer to one request, after as many attempts as it takes or the settings allow."""
        body = {
            "model": self._model,
            "messages": self._control.messages(request.messages),
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "max_tokens": request.sampling.max_new_tokens,
            "seed": request.seed % _SEEDS,
        }
        attempt = 1
        while True:
            try:
                return replace(await self._attempt(client, body), attempts=attempt)
            except _PassingError as error:
                self._check()
                if attempt == self._settings.attempts:
                    return failed(error.reason, f"{error} (tried {attempt} times)", attempts=attempt)
                await asyncio.sleep(max(error.pause, self._pause(attempt)))
            attempt += 1

    async def _attempt(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Completion:
        """One call. Raises _PassingError for what may go better next time, GenerationError for what never will."""
        import httpx

        try:
            response = await client.post(f"{self._url}/chat/completions", json=body)
        except httpx.TimeoutException as error:
            raise _PassingError("timeout", f"no answer within {self._settings.timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise _PassingError("connection", f"{type(error).__name__}: {error}") from error
        except httpx.DecodingError as error:
            raise _PassingError("malformed", str(error)) from error
        status, text = response.status_code, self._without_key(response.text)
        if status == 429 or status >= 500:
            raise _PassingError(f"status_{status}", text[:_EXCERPT], _seconds(response.headers.get("Retry-After")))
        if status in _FATAL:
            raise GenerationError(f"{self._url} answered {status}: check {_FATAL[status]}. It says: {text[:_EXCERPT]}")
        if status != 200:
            too_long = any(words in text for words in _TOO_LONG)
            return failed("prompt_too_long" if too_long else "refused", f"status {status}: {text[:_EXCERPT]}")
        try:
            return _completion(response.json())
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _PassingError("malformed", f"not a chat completion: {text[:_EXCERPT]}") from error

    async def _check_model(self) -> None:
        """GenerationError unless the server answers and lists the model."""
        import httpx

        try:
            async with self._client() as client:
                response = await client.get(f"{self._url}/models")
                response.raise_for_status()
                served = [str(model["id"]) for model in response.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            said = self._without_key(str(error) or type(error).__name__)
            raise GenerationError(
                f"{self._url} does not list its models ({said}). Start the server, or check engine.openai.base_url and "
                f"the key in {self._settings.key_variable}."
            ) from error
        if self._model not in served:
            raise GenerationError(
                f"{self._url} serves {', '.join(served) or 'nothing'}, not {self._model}. Start it with M_t under the "
                f"name of its digest (vLLM: --served-model-name {self._model}), leave engine.openai.base_url out to "
                "have that done, or name another model in engine.openai.model."
            )

    def _pause(self, attempt: int) -> float:
        """Doubled each time; half of it by chance, so that refused requests do not all come back at once."""
        longest: float = min(_LONGEST_PAUSE, self._settings.backoff_s * 2 ** (attempt - 1))
        return longest * (0.5 + random.random() / 2)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _PassingError(Exception):
    """A failed attempt that is worth another one, after ``pause`` seconds at least."""

    def __init__(self, reason: str, detail: str, pause: float = 0.0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.pause = min(pause, _LONGEST_PAUSE)


def _completion(answer: dict[str, Any]) -> Completion:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    prompt, new = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
    finish = choice["finish_reason"]
    if finish not in ("stop", "length"):
        return failed("refused", f"the server ended with {finish!r}", prompt)
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("content is no text")
    return Completion(text, finish, prompt, new)


def _seconds(header: str | None) -> float:
    """``Retry-After`` in seconds; its other form, a date, is left to the growing pauses."""
    return float(header) if header is not None and header.isdigit() else 0.0


def _control_tokens(folder: Path) -> ControlTokens:
    """Those of the checkpoint's tokenizer and of common chat templates: a hosted model may have another tokenizer."""
    from lance_dagster.storage.models import load_tokenizer

    own = ControlTokens.of_tokenizer(load_tokenizer(folder)).pattern.pattern
    return ControlTokens.of_patterns([own, *SeedSettings.model_fields["control_tokens"].default])

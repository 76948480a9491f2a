"""The scripted engine: answers come from a function instead of a model.

For behaviour that a model cannot be made to show on demand: a review that does not parse, a text that is cut off, an
engine that dies half-way. It is not in the registry, so settings cannot name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lance_dagster.engines.engine import Completion, GenerationRequest
from lance_dagster.errors import GenerationError


class ScriptedEngine:
    """Answers each request with ``answer(request)``.

    A plain text is a completion that ended by itself; tokens are counted as words between white space. ``requests``
    holds every request that was answered, in order. Once ``fail_after`` requests are answered, the next one raises
    GenerationError, and with it the whole call to ``generate``.
    """

    def __init__(
        self,
        answer: Callable[[GenerationRequest], Completion | str],
        digest: str = "scripted",
        fail_after: int | None = None,
    ) -> None:
        self._answer = answer
        self.model_digest = digest
        self._fail_after = fail_after
        self.requests: list[GenerationRequest] = []

    @property
    def identity(self) -> str:
        return "scripted"

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        return [self._complete(request) for request in requests]

    def close(self) -> None:
        pass

    def _complete(self, request: GenerationRequest) -> Completion:
        if len(self.requests) == self._fail_after:
            raise GenerationError(f"the scripted engine was told to fail after {self._fail_after} requests")
        answer = self._answer(request)
        self.requests.append(request)
        if isinstance(answer, Completion):
            return answer
        prompt_tokens = sum(len(message["content"].split()) for message in request.messages)
        return Completion(answer, "stop", prompt_tokens, len(answer.split()))

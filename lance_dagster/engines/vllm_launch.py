"""Starting vLLM on a checkpoint, inside this process' engine or as a server: folder, arguments, environment."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from upath import UPath

from lance_dagster.engines.head_padding import head_size, pad_heads
from lance_dagster.errors import GenerationError
from lance_dagster.settings import EngineSettings, ModelSettings
from lance_dagster.storage.checkpoints import hash_folder
from lance_dagster.storage.files import json_digest

_GIB = 1 << 30


@dataclass(frozen=True)
class VllmLaunch:
    """A folder that vLLM can run, and vLLM's own engine arguments."""

    folder: Path
    arguments: Mapping[str, Any]

    def command_line(self) -> list[str]:
        """The arguments as flags of vLLM's server."""
        flags: list[str] = []
        for name, value in self.arguments.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            elif value is not None:
                flags += [f"--{flag}", str(value)]
        return flags


def vllm_identity(model: ModelSettings, engine: EngineSettings) -> str:
    """Type of the weights, quantisation and adapter: what decides the texts besides the model."""
    parts = ["vllm", model.dtype]
    if engine.vllm.quantization is not None:
        parts.append(engine.vllm.quantization)
    if engine.vllm.lora is not None:
        parts.append(f"lora_{json_digest(hash_folder(UPath(adapter_folder(engine.vllm.lora))))}")
    return "/".join(parts)


@contextmanager
def vllm_launch(folder: Path, model: ModelSettings, engine: EngineSettings, context: int) -> Iterator[VllmLaunch]:
    """How to start vLLM on the checkpoint in ``folder``. A copy that it may need lasts as long as the block.

    Raises GenerationError where vLLM is missing, cannot be imported, or is built for another device.
    """
    if find_spec("vllm") is None:
        raise GenerationError(
            f"engine.kind is {engine.kind!r}, but vLLM is not installed. Run `make vllm` in a clone of the project (or "
            "`pip install lance-dagster[vllm]` on a machine with a GPU), or set engine.kind to 'transformers'."
        )
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise GenerationError(f"vLLM is installed but cannot be imported ({error}); run `make vllm`") from error
    on_cpu = bool(current_platform.is_cpu())
    if model.device == "cpu" and not on_cpu:
        raise GenerationError(
            "model.device is 'cpu', but the vLLM that is installed runs on a GPU. Set engine.kind to 'transformers' or "
            "model.device to 'auto'."
        )
    arguments = _arguments(folder, model, engine, context, on_cpu)
    with tempfile.TemporaryDirectory(prefix="lance_vllm_") as copy:
        yield VllmLaunch(_with_known_heads(folder, Path(copy)) if on_cpu else folder, arguments)


def _with_known_heads(folder: Path, copy: Path) -> Path:
    """``folder``, or a copy whose attention heads are as wide as the next size that the CPU kernels take."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes, own = CPUAttentionBackend.get_supported_head_sizes(), head_size(folder)
    if own is None or own in sizes or own > max(sizes):
        return folder
    pad_heads(folder, copy, min(size for size in sizes if size > own))
    return copy


def _arguments(
    folder: Path, model: ModelSettings, engine: EngineSettings, context: int, on_cpu: bool
) -> dict[str, Any]:
    chosen = engine.vllm
    cache = chosen.cache_gb or (1.0 if on_cpu else None)
    arguments: dict[str, Any] = {
        "dtype": _dtype(folder, model),
        "trust_remote_code": model.trust_remote_code,
        "max_model_len": context,
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
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(context, 8192)}
    else:
        arguments["gpu_memory_utilization"] = chosen.memory_share
    if chosen.lora is not None:
        config = json.loads((Path(adapter_folder(chosen.lora)) / "adapter_config.json").read_text(encoding="utf-8"))
        arguments |= {"enable_lora": True, "max_lora_rank": int(config["r"])}
    return arguments


def _dtype(folder: Path, model: ModelSettings) -> str:
    """The type that the checkpoint is stored in for 'auto', as in transformers; vLLM's own auto halves float32."""
    if model.dtype != "auto":
        return model.dtype
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


def adapter_folder(folder: str) -> str:
    """The absolute path of a LoRA adapter; GenerationError if there is none."""
    if not (Path(folder) / "adapter_config.json").is_file():
        raise GenerationError(
            f"engine.vllm.lora: there is no LoRA adapter (adapter_config.json) in {folder}; give the folder that PEFT "
            "wrote"
        )
    return str(Path(folder).resolve())


@contextmanager
def vllm_environment(model: ModelSettings) -> Iterator[None]:
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

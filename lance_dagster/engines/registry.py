"""Engines by their name in the settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from lance_dagster.engines.engine import TextEngine
from lance_dagster.engines.openai_engine import OpenAIEngine, openai_identity
from lance_dagster.engines.ray_engine import RayEngine
from lance_dagster.engines.transformers_engine import TransformersEngine
from lance_dagster.engines.vllm_engine import VllmEngine
from lance_dagster.engines.vllm_launch import vllm_identity
from lance_dagster.settings import EngineSettings, ModelSettings

EngineFactory = Callable[[Path, str, ModelSettings, EngineSettings], TextEngine]
ENGINES: dict[str, EngineFactory] = {
    "transformers": TransformersEngine,
    "vllm": VllmEngine,
    "openai": OpenAIEngine,
    "ray": RayEngine,
}

# Settings that decide what an engine writes, by their dotted names; the others change how fast it does so.
SETTINGS_OF_TEXTS = (
    "engine.kind",
    "engine.vllm.quantization",
    "engine.vllm.lora",
    "engine.openai.base_url",
    "engine.openai.model",
    "engine.ray.inner",
    "model.dtype",
)


class Choice(NamedTuple):
    """An engine, and why it was chosen."""

    kind: str
    reason: str


def engine_kind(engine: EngineSettings, model: ModelSettings) -> Choice:
    """The engine that the settings name, or what 'auto' means on this machine."""
    if engine.kind != "auto":
        return Choice(engine.kind, "engine.kind")
    if model.device == "cpu":
        return Choice("transformers", "model.device is cpu")
    import torch

    if not torch.cuda.is_available():
        return Choice("transformers", "torch sees no GPU")
    if find_spec("vllm") is None:
        return Choice("transformers", "vLLM, which is faster on this GPU, is missing: pip install lance-dagster[vllm]")
    return Choice("vllm", "there is a GPU")


def engine_identity(kind: str, engine: EngineSettings, model: ModelSettings) -> str:
    """``TextEngine.identity`` of the engine that these settings give, without loading it.

    The type of the weights is part of it: the same checkpoint writes other texts in another precision.
    """
    if kind == "ray":
        kind = engine.ray.inner
    if kind == "vllm":
        return vllm_identity(model, engine)
    if kind == "openai":
        return openai_identity(model, engine)
    return f"{kind}/{model.dtype}"


def gpus_of(kind: str, engine: EngineSettings, model: ModelSettings) -> int:
    """How many GPUs of this machine or cluster the engine holds while it is loaded."""
    if kind == "ray":
        return math.ceil(engine.ray.workers * engine.ray.gpus_per_worker)
    if model.device == "cpu" or (kind == "openai" and engine.openai.base_url is not None):
        return 0
    import torch

    if not torch.cuda.is_available():
        return 0
    return 1 if kind == "transformers" else engine.vllm.tensor_parallel

"""Engines by their name in the settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lance_dagster.engines.engine import TextEngine
from lance_dagster.engines.transformers_engine import TransformersEngine
from lance_dagster.settings import EngineSettings, ModelSettings

EngineFactory = Callable[[Path, str, ModelSettings, EngineSettings], TextEngine]
ENGINES: dict[str, EngineFactory] = {"transformers": TransformersEngine}


def engine_class(name: str) -> EngineFactory:
    """The engine that the settings name; the settings have checked that it exists."""
    return ENGINES[name]


def engine_identity(engine: EngineSettings, model: ModelSettings) -> str:
    """``TextEngine.identity`` of the engine that these settings give, without loading it.

    The type of the weights is part of it: the same checkpoint writes other texts in another precision.
    """
    return f"{engine.name}/{model.dtype}"

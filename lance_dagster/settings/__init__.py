"""Typed settings of one experiment. Every switch has a name, a range and a source.

Sections refer to arXiv 2412.15151 ("the paper"); "reference code" is the code that its authors released.
Where the two disagree, the switch is here and the default is named; docs/settings.md lists them in one table.
"""

from __future__ import annotations

from lance_dagster.settings.construction import ConstructionSettings, FilterSettings, SamplingSettings
from lance_dagster.settings.engine import EngineSettings, OpenAISettings, PriceSettings, RaySettings, VllmSettings
from lance_dagster.settings.evaluation import EvaluationSettings, GateSettings
from lance_dagster.settings.evolution import (
    AutomationSettings,
    BranchSettings,
    EvolutionSettings,
    ModelSettings,
    PromptSettings,
    SeedSettings,
)
from lance_dagster.settings.parsing import allowed_values, explain, merged, parse_settings, settings_schema
from lance_dagster.settings.section import MAX_ITERATIONS, Section
from lance_dagster.settings.training import DPOSettings, OptimiserSettings, SFTSettings, TrainingSettings

__all__ = [
    "MAX_ITERATIONS",
    "AutomationSettings",
    "BranchSettings",
    "ConstructionSettings",
    "DPOSettings",
    "EngineSettings",
    "EvaluationSettings",
    "EvolutionSettings",
    "FilterSettings",
    "GateSettings",
    "ModelSettings",
    "OpenAISettings",
    "OptimiserSettings",
    "PriceSettings",
    "PromptSettings",
    "RaySettings",
    "SFTSettings",
    "SamplingSettings",
    "Section",
    "SeedSettings",
    "TrainingSettings",
    "VllmSettings",
    "allowed_values",
    "explain",
    "merged",
    "parse_settings",
    "settings_schema",
]

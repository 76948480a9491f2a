"""The Dagster component of one experiment: `type: lance_dagster.components.self_evolution.SelfEvolution`."""

from __future__ import annotations

from typing import Annotated, Any, Self

import dagster as dg
from pydantic import BaseModel, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue

from lance_dagster.components.automation import experiment_jobs
from lance_dagster.components.checks import experiment_checks
from lance_dagster.components.construction_assets import construction_assets
from lance_dagster.components.driving import driving_sensors, experiment_schedules
from lance_dagster.components.evaluation_assets import evaluation_assets, evolution_report_asset
from lance_dagster.components.experiment import Experiment
from lance_dagster.components.parquet_io import ParquetIOManager
from lance_dagster.components.propagation import REPORT, propagating, propagation_sensors
from lance_dagster.components.staleness import Wiring
from lance_dagster.components.training_assets import training_assets
from lance_dagster.errors import SettingsError
from lance_dagster.settings import EvolutionSettings, Section, parse_settings


class _SchemaOfSettings:
    """For editors and `dg check yaml`, plain values have the JSON schema of EvolutionSettings."""

    def __get_pydantic_json_schema__(self, plain: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(EvolutionSettings.__pydantic_core_schema__)


class ExperimentFile(Section):
    """The attributes of a defs.yaml. Text may hold templates such as ``{{ env.BASE_MODEL }}``.

    ``settings`` are plain values here: they are validated once templates are filled in, with an explanation of what
    is allowed.
    """

    experiment: str = Field(
        pattern=r"^[a-z][a-z0-9_]{0,40}$", description="name of the folder: prefix of the asset keys, and the group"
    )
    settings: Annotated[dict[str, Any], _SchemaOfSettings()]


class SelfEvolution(dg.Component):
    """One named evolution: method, base model, seed data and settings. Its assets share a key prefix and a group."""

    def __init__(self, experiment: str, settings: EvolutionSettings) -> None:
        self.experiment = experiment
        self.settings = settings

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        return ExperimentFile

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        file = context.path / "defs.yaml"
        if not isinstance(attributes, ExperimentFile):
            raise SettingsError(f"{file}: a SelfEvolution needs `experiment` and `settings` under `attributes`")
        if attributes.experiment != context.path.name:  # two copies of one experiment would write the same files
            raise SettingsError(
                f"{file}: experiment is {attributes.experiment!r}, but its folder is {context.path.name!r}. Give both "
                "the same name."
            )
        values = context.resolution_context.at_path("attributes").resolve_value(attributes.settings, as_type=dict)
        try:
            return cls(attributes.experiment, parse_settings(values))
        except SettingsError as error:
            raise SettingsError(f"{file}, experiment {attributes.experiment}: {error}") from None

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return experiment_definitions(Experiment(self.experiment, self.settings, context.project_root))


def experiment_definitions(experiment: Experiment) -> dg.Definitions:
    """Assets, their checks, jobs, schedules, sensors and the IO manager of one experiment."""
    assets = [*construction_assets(experiment), *training_assets(experiment), *evaluation_assets(experiment)]
    rejoined = {experiment.key("promoted_checkpoint"): experiment.key("dpo_checkpoint")}
    assets.append(evolution_report_asset(experiment, Wiring.of(assets, rejoined)))
    wiring = Wiring.of(assets, rejoined)
    return dg.Definitions(
        assets=propagating(assets, wiring, experiment.key(REPORT)),
        asset_checks=experiment_checks(experiment, wiring),
        jobs=experiment_jobs(experiment),
        schedules=experiment_schedules(experiment),
        sensors=[*propagation_sensors(experiment), *driving_sensors(experiment)],
        resources={experiment.io_manager_key: ParquetIOManager(base_path=experiment.store.base)},
    )

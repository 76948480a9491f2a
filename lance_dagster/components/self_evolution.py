"""The Dagster component of one experiment: `type: lance_dagster.components.self_evolution.SelfEvolution`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import dagster as dg
import yaml
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
from lance_dagster.settings import EvolutionSettings, Section, merged, parse_settings


class _SchemaOfSettings:
    """For editors and `dg check yaml`, plain values have the JSON schema of EvolutionSettings.

    Nothing in it is required: what a file leaves out may come from the experiment that it extends.
    """

    def __get_pydantic_json_schema__(self, plain: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(EvolutionSettings.__pydantic_core_schema__))
        return {name: value for name, value in schema.items() if name != "required"}


class ExperimentFile(Section):
    """The attributes of a defs.yaml. Text may hold templates such as ``{{ env.BASE_MODEL }}``.

    ``settings`` are plain values here: they are validated once templates are filled in, with an explanation of what
    is allowed.
    """

    experiment: str = Field(
        pattern=r"^[a-z][a-z0-9_]{0,40}$", description="name of the folder: prefix of the asset keys, and the group"
    )
    extends: str | None = Field(
        None, description="another experiment's folder: its settings hold wherever this file does not say otherwise"
    )
    settings: Annotated[dict[str, Any], _SchemaOfSettings()] = Field(default_factory=dict)


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
        plain = inherited(attributes, file)
        values = context.resolution_context.at_path("attributes").resolve_value(plain, as_type=dict)
        try:
            settings = parse_settings(values)
        except SettingsError as error:
            raise SettingsError(f"{file}, experiment {attributes.experiment}: {error}") from None
        if settings.start_from is not None:
            other = context.path.parent / settings.start_from.experiment / file.name
            if inherited(experiment_file(other, file, "branches from"), other).get("start_from"):
                raise SettingsError(
                    f"{file}: it branches from {settings.start_from.experiment}, which is a branch itself; branch from "
                    "the experiment that made the iteration"
                )
        return cls(attributes.experiment, settings)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return experiment_definitions(Experiment(self.experiment, self.settings, context.project_root))


def inherited(attributes: ExperimentFile, file: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Plain settings of a file over those that it extends. SettingsError for a missing file or a circle."""
    if attributes.extends is None:
        return attributes.settings
    parent = file.parent.parent / attributes.extends / file.name
    line = (*children, file)
    if parent in line:
        circle = " extends ".join(path.parent.name for path in (*line, parent))
        raise SettingsError(f"{file}: {circle}, which is a circle; one of them must stand alone")
    return merged(inherited(experiment_file(parent, file), parent, line), attributes.settings)


def experiment_file(file: Path, wanted_by: Path, how: str = "extends") -> ExperimentFile:
    """The attributes of another defs.yaml; SettingsError if it is missing or is no experiment."""
    if not file.is_file():
        known = ", ".join(sorted(path.parent.name for path in file.parent.parent.glob(f"*/{file.name}")))
        raise SettingsError(f"{wanted_by}: {how} {file.parent.name!r}, but there is no {file}; there are {known}")
    try:
        return ExperimentFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))["attributes"])
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{wanted_by}: {how} {file}, which is not the file of an experiment: {error}") from error


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

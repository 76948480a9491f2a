"""Assets that are models: base, M_0, the policy model of an iteration, its SFT and DPO checkpoints, the promotion."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
from upath import UPath

from lance_dagster.components.automation import refuse_after_failed_iteration
from lance_dagster.components.checks import refuse_unpromotable
from lance_dagster.components.experiment import Experiment, clear_failures
from lance_dagster.construction.assemble import initial_set
from lance_dagster.construction.policy import Ancestor, PolicyModel, build_policy, open_ancestor, promotion_digest
from lance_dagster.construction.steps import StepContext
from lance_dagster.engines.batch import BatchRunner
from lance_dagster.errors import ArtifactError, SettingsError
from lance_dagster.report.pictures import loss_curve
from lance_dagster.report.render import markdown_image
from lance_dagster.settings import OptimiserSettings, Section
from lance_dagster.storage.checkpoints import (
    CheckpointManifest,
    commit_checkpoint,
    hash_folder,
    local_folder,
    pass_on,
    staging_folder,
    write_manifest,
)
from lance_dagster.storage.experiment_store import UNPARTITIONED, iteration_key, resolve_path
from lance_dagster.storage.files import json_digest
from lance_dagster.storage.models import fetch_base_model
from lance_dagster.storage.tables import table_digest
from lance_dagster.training.launch import Stage, train
from lance_dagster.training.stage import TrainingResult

KINDS = {"pytorch", "huggingface"}


def training_assets(experiment: Experiment) -> list[dg.AssetsDefinition | dg.SourceAsset]:
    """base_checkpoint, initial_checkpoint, policy_model, sft_checkpoint, dpo_checkpoint, promoted_checkpoint."""
    shared = experiment.settings.start_from is not None
    return [
        *([] if shared else [_base_checkpoint(experiment), _initial_checkpoint(experiment)]),
        _policy_model(experiment),
        _sft_checkpoint(experiment),
        _dpo_checkpoint(experiment),
        _promoted_checkpoint(experiment),
    ]


# Settings of a stage that decide how fast, in how much memory or whether it trains, but not what comes out.
_NOT_IN_WEIGHTS = ("gradient_checkpointing", "min_weights_changed", "reference")


def trained_by(experiment: Experiment, stage: Literal["initial", "sft", "dpo"]) -> str:
    """For ``uses``: what decides the weights that a stage ends with, its start and its rows aside."""
    training = experiment.settings.training
    if stage != "initial" and stage not in training.stages:
        return "left out"
    section: OptimiserSettings = getattr(training, stage)
    idle = () if section.lora_rank else ("lora_alpha", "lora_dropout")
    names = [name for name in type(section).model_fields if name not in (*_NOT_IN_WEIGHTS, *idle)]
    return experiment.values(
        "training.seed",
        "model.dtype",
        "model.trust_remote_code",
        *(f"training.{stage}.{name}" for name in names),
    )


def _base_checkpoint(experiment: Experiment) -> dg.AssetsDefinition:
    model = experiment.settings.model

    @experiment.asset(
        "base_checkpoint",
        {"huggingface"},
        [experiment.values("model.path", "model.revision")],
        partitioned=False,
        description=f"M: the untouched model {model.path}, by the digest of its files. Nothing is copied.",
    )
    def base_checkpoint(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        folder = fetch_base_model(model, resolve_path(model.path, experiment.root))
        files = hash_folder(UPath(folder))
        manifest = CheckpointManifest("base", str(folder.resolve()), json_digest(files), files)
        write_manifest(experiment.store.manifest("base_checkpoint"), manifest)
        return _checkpoint_result(manifest, {"path": dg.MetadataValue.path(manifest.location)})

    return base_checkpoint


def _initial_checkpoint(experiment: Experiment) -> dg.AssetsDefinition:
    training = experiment.settings.training

    @experiment.asset(
        "initial_checkpoint",
        KINDS,
        [trained_by(experiment, "initial"), experiment.prompts.digest("review")],
        partitioned=False,
        inputs=("seed_instructions", "seed_reviews"),
        deps=("base_checkpoint",),
        description="M_0 = SFT(M, Seed_0): Algorithm 2, line 1, on both parts of the seed.",
    )
    def initial_checkpoint(
        context: dg.AssetExecutionContext, seed_instructions: pa.Table, seed_reviews: pa.Table
    ) -> dg.MaterializeResult[None]:
        with train_initial(experiment, context, seed_instructions, seed_reviews, training.seed) as (
            staged,
            result,
            base,
        ):
            manifest = commit_checkpoint(
                staged,
                experiment.store.asset_folder("initial_checkpoint"),
                UNPARTITIONED,
                kind="initial",
                parent_digest=base.digest,
                data={
                    "seed_instructions": table_digest(seed_instructions),
                    "seed_reviews": table_digest(seed_reviews),
                },
                settings=training.initial.model_dump(mode="json"),
                seed=training.seed,
                metrics={**result.metrics(), "curve": result.curve},
            )
        return _checkpoint_result(manifest, _training_metadata(result, "SFT of M_0"))

    return initial_checkpoint


@contextmanager
def train_initial(
    experiment: Experiment,
    context: dg.AssetExecutionContext,
    seed_instructions: pa.Table,
    seed_reviews: pa.Table,
    seed: int,
) -> Iterator[tuple[Path, TrainingResult, CheckpointManifest]]:
    """Train M_0 with some random seed into a folder that lasts as long as the block."""
    base = open_ancestor(experiment.store, _current(experiment, "base", "base_checkpoint"))
    rows = initial_set(_assembly(experiment, context, -1, base.digest), seed_instructions, seed_reviews)
    with local_folder(base) as start, staging_folder() as staged:
        stage = Stage("sft", start, staged, experiment.settings.training.initial, experiment.settings.model, seed)
        yield staged, train(stage, rows, context.log.info, experiment.accelerate_config), base


def _policy_model(experiment: Experiment) -> dg.AssetsDefinition:
    keys = experiment.iterations.get_partition_keys()
    promotions = [(experiment.key("promoted_checkpoint"), dict(pairwise(keys)))]
    first = int(keys[0])
    if first:  # the model that a branch starts from is another experiment's
        promotions.append((experiment.key("promoted_checkpoint", first - 1), {iteration_key(first - 1): keys[0]}))

    @experiment.asset(
        "policy_model",
        {"json"},
        [],
        deps=(
            "initial_checkpoint",
            *(
                dg.AssetDep(key, partition_mapping=dg.StaticPartitionMapping(previous))
                for key, previous in promotions
                if previous
            ),
        ),
        description="M_t and the earlier tables that iteration t may read, by digest. M_0 is the initial checkpoint, "
        "M_{t+1} the DPO checkpoint of iteration t. Refuses to run while the iteration before is missing or failed.",
    )
    def policy_model(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        iteration = int(context.partition_key)
        refuse_after_failed_iteration(context, experiment.name, iteration)
        policy = build_policy(experiment.store, iteration)
        if iteration:
            refuse_unpromotable(experiment, iteration - 1)
        policy.save(experiment.store)
        metadata: dict[str, Any] = {
            "iteration": iteration,
            "model": policy.model.label,
            "model_digest": policy.model.digest,
            "source_asset": dg.MetadataValue.asset(experiment.key(policy.model.asset, iteration - 1)),
            "source_partition": policy.model.partition,
            "ancestors": dg.MetadataValue.json([f"{entry.label} {entry.digest}" for entry in policy.ancestors]),
        }
        source = _source_run(context, experiment.key(policy.model.asset, iteration - 1), iteration)
        if source is not None:
            metadata["source_run"] = dg.MetadataValue.dagster_run(source)
        return dg.MaterializeResult(data_version=dg.DataVersion(policy.digest), metadata=metadata)

    return policy_model


def _source_run(context: dg.AssetExecutionContext, key: dg.AssetKey, iteration: int) -> str | None:
    """The run that made the model of this iteration, if this instance still knows it."""
    partitions = None if iteration == 0 else [iteration_key(iteration - 1)]
    records = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=partitions), limit=1
    ).records
    return records[0].event_log_entry.run_id if records else None


def _sft_checkpoint(experiment: Experiment) -> dg.AssetsDefinition:
    training = experiment.settings.training

    @experiment.asset(
        "sft_checkpoint",
        KINDS,
        [trained_by(experiment, "sft"), experiment.values("training.start_from", "training.steps_of")],
        inputs=("sft_set",),
        deps=("policy_model", *_matched(experiment)),
        description="M_t^S = SFT(M_t, D^s): equation 1 of the paper, loss on the responses only.",
    )
    def sft_checkpoint(context: dg.AssetExecutionContext, sft_set: pa.Table) -> dg.MaterializeResult[None]:
        policy = PolicyModel.load(experiment.store, int(context.partition_key))
        parent = open_ancestor(experiment.store, _start_of_sft(experiment, policy))
        if "sft" not in training.stages:
            return _pass_on(experiment, context, "sft", parent)
        steps = _steps_to_match(experiment, context.partition_key)
        with local_folder(parent) as start, staging_folder() as staged:
            seed = training.seed + policy.iteration
            stage = Stage("sft", start, staged, training.sft, experiment.settings.model, seed, steps)
            result = train(stage, sft_set, context.log.info, experiment.accelerate_config)
            manifest = _commit(
                experiment, context, "sft", staged, parent, {"sft_set": sft_set}, training.sft, result, seed
            )
        return _checkpoint_result(manifest, _training_metadata(result, f"SFT of iteration {policy.iteration}"))

    return sft_checkpoint


def _dpo_checkpoint(experiment: Experiment) -> dg.AssetsDefinition:
    training = experiment.settings.training

    @experiment.asset(
        "dpo_checkpoint",
        KINDS,
        [trained_by(experiment, "dpo")],
        inputs=("preference_set",),
        deps=("sft_checkpoint",),
        description="M_t^D = DPO(M_t^S, D^p): equations 2 to 4 of the paper, reference M_t^S. It becomes M_{t+1}: once "
        "it is complete, promoted_checkpoint of the same iteration is observed with its digest.",
    )
    def dpo_checkpoint(context: dg.AssetExecutionContext, preference_set: pa.Table) -> dg.MaterializeResult[None]:
        key = context.partition_key
        parent = experiment.store.checkpoint("sft_checkpoint", key)
        open_ancestor(experiment.store, Ancestor("sft", "sft_checkpoint", key, parent.digest))
        if "dpo" not in training.stages:
            passed = _pass_on(experiment, context, "dpo", parent)
            _report_promotion(experiment, context, parent.digest)
            return passed
        with local_folder(parent) as start, staging_folder() as staged:
            seed = training.seed + int(key)
            stage = Stage("dpo", start, staged, training.dpo, experiment.settings.model, seed)
            result = train(stage, preference_set, context.log.info, experiment.accelerate_config)
            data = {"preference_set": preference_set}
            manifest = _commit(experiment, context, "dpo", staged, parent, data, training.dpo, result, seed)
        _report_promotion(experiment, context, manifest.digest)
        return _checkpoint_result(manifest, _training_metadata(result, f"DPO of iteration {int(key)}"))

    return dpo_checkpoint


def _report_promotion(experiment: Experiment, context: dg.AssetExecutionContext, digest: str) -> None:
    """Tell Dagster that promoted_checkpoint of this iteration has this content now."""
    key = context.partition_key
    context.log_event(
        dg.AssetObservation(
            experiment.key("promoted_checkpoint"),
            partition=key,
            tags={"dagster/data_version": promotion_digest(experiment.store, int(key))},
            metadata={"model_digest": digest, "promoted_to": iteration_key(int(key) + 1)},
        )
    )


def _pass_on(
    experiment: Experiment, context: dg.AssetExecutionContext, stage: str, parent: CheckpointManifest
) -> dg.MaterializeResult[None]:
    """The checkpoint of a stage that the settings leave out: the model that it would have started from."""
    context.log.info(f"training.stages leaves out {stage}: the model passes on as it is, nothing is copied")
    manifest = pass_on(
        parent,
        experiment.store.asset_folder(f"{stage}_checkpoint"),
        context.partition_key,
        kind=stage,
        settings={"passed_on": True},
        metrics={"steps": 0},
    )
    return _checkpoint_result(manifest, {"train/steps": 0})


def _steps_to_match(experiment: Experiment, partition: str) -> int | None:
    """Optimiser steps of the same iteration of the experiment that ``training.steps_of`` names."""
    other = experiment.settings.training.steps_of
    if other is None:
        return None
    store, steps = replace(experiment.store, experiment=other), 0
    for stage in ("sft", "dpo"):
        if not store.manifest(f"{stage}_checkpoint", partition).exists():
            raise ArtifactError(
                f"training.steps_of is {other!r}, but {other}/{stage}_checkpoint[{partition}] has not been materialised"
                f" (looked in {store.folder}). Run that iteration first: `dg launch --job {other}_one_iteration "
                f"--partition {partition}`."
            )
        metrics = store.checkpoint(f"{stage}_checkpoint", partition).metrics
        if not isinstance(metrics.get("steps"), int):
            raise ArtifactError(
                f"training.steps_of: the manifest of {other}/{stage}_checkpoint[{partition}] does not say how many "
                "steps it took; materialise it again"
            )
        steps += metrics["steps"]
    return steps


def _matched(experiment: Experiment) -> list[dg.AssetDep]:
    """The checkpoints, of the same iteration of another experiment, whose steps SFT is to match."""
    other = experiment.settings.training.steps_of
    if other == experiment.name:
        raise SettingsError(f"training.steps_of of experiment {other} names {other} itself; name another experiment")
    keys = [] if other is None else [[other, "sft_checkpoint"], [other, "dpo_checkpoint"]]
    return [dg.AssetDep(dg.AssetKey(key)) for key in keys]


def _promoted_checkpoint(experiment: Experiment) -> dg.SourceAsset:
    """The one edge of the loop that is cut: observed, not computed, so that the graph stays acyclic."""

    def promoted_checkpoint() -> dg.DataVersionsByPartition:
        complete = [
            key
            for key in experiment.iterations.get_partition_keys()
            if experiment.store.manifest("dpo_checkpoint", key).exists()
        ]
        return dg.DataVersionsByPartition({key: promotion_digest(experiment.store, int(key)) for key in complete})

    with warnings.catch_warnings():
        # Beta in Dagster 1.13, and chosen knowingly: no stable API carries staleness across the cut.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.observable_source_asset(
            key=experiment.key("promoted_checkpoint"),
            partitions_def=experiment.iterations,
            group_name=experiment.name,
            description="M_{t+1} as iteration t left it. dpo_checkpoint[t] reports its digest here, and "
            "policy_model[t+1] depends on it: this is how a change crosses from one iteration to the next.",
        )(clear_failures(promoted_checkpoint))


def _current(experiment: Experiment, label: str, asset: str) -> Ancestor:
    """An unpartitioned checkpoint as it is now."""
    return Ancestor(label, asset, UNPARTITIONED, experiment.store.checkpoint(asset).digest)


def _start_of_sft(experiment: Experiment, policy: PolicyModel) -> Ancestor:
    start = experiment.settings.training.start_from
    if start == "policy":
        return policy.model
    return _current(experiment, start, f"{start}_checkpoint")


def _assembly(experiment: Experiment, context: dg.AssetExecutionContext, iteration: int, digest: str) -> StepContext:
    """A step that assembles rows and never generates."""
    engine = experiment.settings.engine

    def load() -> Any:
        raise AssertionError("assembling a set generates nothing")

    runner = BatchRunner(load, digest, engine.kind, experiment.store.cache, engine.shard_rows, context.log.info)
    return StepContext(iteration, experiment.settings, experiment.prompts, runner, context.log.info)


def _commit(
    experiment: Experiment,
    context: dg.AssetExecutionContext,
    stage: str,
    staged: Path,
    parent: CheckpointManifest,
    data: dict[str, pa.Table],
    settings: Section,
    result: TrainingResult,
    seed: int,
) -> CheckpointManifest:
    return commit_checkpoint(
        staged,
        experiment.store.asset_folder(f"{stage}_checkpoint"),
        context.partition_key,
        kind=stage,
        parent_digest=parent.digest,
        data={name: table_digest(table) for name, table in data.items()},
        settings=settings.model_dump(mode="json"),
        seed=seed,
        metrics={**result.metrics(), "curve": result.curve},
    )


def _checkpoint_result(manifest: CheckpointManifest, metadata: dict[str, Any]) -> dg.MaterializeResult[None]:
    provenance = replace(manifest, metrics={})
    return dg.MaterializeResult(
        data_version=dg.DataVersion(manifest.digest),
        metadata={
            "digest": manifest.digest,
            "dagster/uri": manifest.location,
            "manifest": dg.MetadataValue.json({**provenance.__dict__}),
            **metadata,
        },
    )


def _training_metadata(result: TrainingResult, title: str) -> dict[str, Any]:
    picture = markdown_image(loss_curve(result.curve, title), title)
    return {
        **{f"train/{name}": value for name, value in result.metrics().items()},
        "train/curve": dg.MetadataValue.md(picture),
    }

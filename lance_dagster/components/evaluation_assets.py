"""Assets that measure: baseline scores, scores and drift of every iteration, and the report over all of them."""

import time

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from lance_dagster.components.experiment import Experiment, table_result
from lance_dagster.components.staleness import Events, Situation, Wiring, outdated_iterations
from lance_dagster.components.training_assets import train_initial, trained_by
from lance_dagster.construction.assemble import SEED_ITERATION
from lance_dagster.construction.policy import Ancestor, PolicyModel, open_ancestor
from lance_dagster.report.gather import gather
from lance_dagster.report.lineage import build_lineage
from lance_dagster.report.render import markdown_image, to_markdown
from lance_dagster.report.write import write_report
from lance_dagster.storage.checkpoints import CheckpointManifest, hash_folder, local_folder
from lance_dagster.storage.experiment_store import UNPARTITIONED
from lance_dagster.storage.files import json_digest
from lance_dagster.storage.tables import write_table
from lance_dagster.training.stage import prompt_messages

KINDS = {"parquet", "python"}


def evaluation_assets(experiment: Experiment) -> list[dg.AssetsDefinition]:
    """baseline_scores, eval_scores, drift."""
    shared = experiment.settings.start_from is not None
    return [*([] if shared else [_baseline_scores(experiment)]), _eval_scores(experiment), _drift(experiment)]


def _scored_by(experiment: Experiment) -> str:
    """For ``uses``: what decides a score, the checkpoint aside."""
    return experiment.values(
        "model.dtype",
        "evaluation.tasks",
        "evaluation.include_path",
        "evaluation.breakdown_field",
        "evaluation.limit",
        "evaluation.few_shot",
        "evaluation.chat_template",
    )


def _baseline_scores(experiment: Experiment) -> dg.AssetsDefinition:
    evaluation, training = experiment.settings.evaluation, experiment.settings.training
    second_training = [trained_by(experiment, "initial"), experiment.prompts.digest("review")]

    @experiment.asset(
        "baseline_scores",
        KINDS,
        [
            _scored_by(experiment),
            experiment.values("evaluation.noise_floor"),
            *(second_training if evaluation.noise_floor == "retrain" else []),
        ],
        partitioned=False,
        inputs=("seed_instructions", "seed_reviews"),
        deps=("base_checkpoint", "initial_checkpoint"),
        description="Scores that every gain is held against: the untouched base model M, M_0 and, unless "
        "evaluation.noise_floor is off, a second M_0 of another seed. The difference of the two is the noise floor.",
    )
    def baseline_scores(
        context: dg.AssetExecutionContext, seed_instructions: pa.Table, seed_reviews: pa.Table
    ) -> dg.MaterializeResult[pa.Table]:
        base = _undamaged(experiment, "base_checkpoint")
        initial = _undamaged(experiment, "initial_checkpoint")
        tables = [
            _evaluate(experiment, context, base, "base", SEED_ITERATION),
            _evaluate(experiment, context, initial, "initial", SEED_ITERATION),
        ]
        if evaluation.noise_floor == "retrain":
            again = training.seed + 1
            context.log.info(f"noise floor: training M_0 again with seed {again}")
            with train_initial(experiment, context, seed_instructions, seed_reviews, again) as (staged, _, _):
                files = hash_folder(UPath(staged))
                second = CheckpointManifest("initial_again", str(staged), json_digest(files), files)
                tables.append(_evaluate(experiment, context, second, "initial_again", SEED_ITERATION))
        table = pa.concat_tables(tables)
        return table_result(table, _score_metadata(table))

    return baseline_scores


def _eval_scores(experiment: Experiment) -> dg.AssetsDefinition:
    @experiment.asset(
        "eval_scores",
        KINDS,
        [_scored_by(experiment)],
        deps=("sft_checkpoint", "dpo_checkpoint"),
        description="lm-eval scores of M_t^S and of M_t^D: both, because DPO can cost what SFT gained.",
    )
    def eval_scores(context: dg.AssetExecutionContext) -> dg.MaterializeResult[pa.Table]:
        key = context.partition_key
        started = time.monotonic()
        table = pa.concat_tables(
            _evaluate(experiment, context, _undamaged(experiment, f"{stage}_checkpoint", key), stage, int(key))
            for stage in ("sft", "dpo")
        )
        seconds = round(time.monotonic() - started, 3)
        return table_result(table, {**_score_metadata(table), "evaluation/seconds": seconds})

    return eval_scores


def _drift(experiment: Experiment) -> dg.AssetsDefinition:
    rows = experiment.settings.evaluation.drift_rows

    @experiment.asset(
        "drift",
        KINDS,
        [experiment.values("evaluation.drift_rows", "model.dtype"), experiment.prompts.digest()],
        inputs=("seed_instructions",),
        deps=("policy_model", "dpo_checkpoint"),
        description="How far M_t^D moved from the base, from M_0 and from every earlier policy model: KL divergence on "
        "the seed responses, and distance of the weights.",
    )
    def drift(context: dg.AssetExecutionContext, seed_instructions: pa.Table) -> dg.MaterializeResult[pa.Table]:
        from contextlib import ExitStack

        from lance_dagster.evaluation.drift import Reference, measure_drift

        iteration = int(context.partition_key)
        policy = PolicyModel.load(experiment.store, iteration)
        manifest = _undamaged(experiment, "dpo_checkpoint", context.partition_key)
        system = experiment.prompts.content.system
        probes = [
            (prompt_messages(system, row["instruction"]), row["response"])
            for row in seed_instructions.slice(0, rows).to_pylist()
        ]
        with ExitStack() as stack:
            references = [
                Reference(
                    ancestor.label,
                    stack.enter_context(local_folder(open_ancestor(experiment.store, ancestor))),
                    ancestor.digest,
                )
                for ancestor in [*policy.ancestors, policy.model]
            ]
            folder = stack.enter_context(local_folder(manifest))
            model = experiment.settings.model
            started = time.monotonic()
            table = measure_drift(folder, manifest.digest, iteration, references, probes, model, context.log.info)
        figures = {f"drift/kl_{row['against']}": row["kl"] for row in table.to_pylist()[:2]}
        last = table.to_pylist()[-1]
        return table_result(
            table,
            {
                **figures,
                "drift/kl_policy": last["kl"],
                "drift/weights": last["weight_distance"],
                "drift/seconds": round(time.monotonic() - started, 3),
            },
        )

    return drift


def evolution_report_asset(experiment: Experiment, wiring: Wiring) -> dg.AssetsDefinition:
    """The report over the assets that ``wiring`` knows: it says which of their iterations are out of date."""

    @experiment.asset(
        "evolution_report",
        {"html", "json"},
        [
            experiment.prompts.identity,
            experiment.values(
                "method",
                "iterations",
                "model.path",
                "seed.instructions",
                "seed.reviews",
                "seed.growth",
                "construction.threshold",
                "construction.samples",
                "construction.reviews_per_item",
                "construction.accept_above",
                "construction.preference_gap",
            ),
        ],
        partitioned=False,
        deps=("baseline_scores", "eval_scores", "drift"),
        description="Scores of the base, of M_0 and of every checkpoint with standard errors, the funnel of each "
        "iteration, the learning curve and sample rows, over the iterations that are complete. Also report.html, "
        "report.json, and lineage.html with the way of sample rows back to their seeds.",
    )
    def evolution_report(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        outdated = outdated_iterations(Situation(Events(context.instance, wiring)))
        summary = gather(experiment.store, experiment.settings, experiment.prompts, outdated)
        lineage = build_lineage(experiment.store, experiment.settings.iterations, summary)
        files = write_report(experiment.store.folder, summary, lineage)
        context.log.info(f"report over {len(summary.funnels)} iterations: {files.html}")
        curve = markdown_image(files.learning_curve.read_bytes(), "learning curve")
        return dg.MaterializeResult(
            data_version=dg.DataVersion(json_digest(summary.to_json())),
            metadata={
                "headline": summary.headline,
                "iterations": len(summary.funnels),
                "iterations/out_of_date": len(outdated),
                "out_of_date": dg.MetadataValue.md("\n".join(f"- {line}" for line in outdated) or "none"),
                "report": dg.MetadataValue.md(to_markdown(summary)),
                "learning_curve": dg.MetadataValue.md(curve),
                "report.html": dg.MetadataValue.path(str(files.html)),
                "lineage.html": dg.MetadataValue.path(str(files.lineage)),
                "report.json": dg.MetadataValue.path(str(files.json)),
            },
        )

    return evolution_report


def _undamaged(experiment: Experiment, asset: str, partition: str = UNPARTITIONED) -> CheckpointManifest:
    """A checkpoint as it is now; ArtifactError for files that do not match its digest."""
    manifest = experiment.store.checkpoint(asset, partition)
    return open_ancestor(experiment.store, Ancestor(manifest.kind, asset, partition, manifest.digest))


def _evaluate(
    experiment: Experiment,
    context: dg.AssetExecutionContext,
    manifest: CheckpointManifest,
    stage: str,
    iteration: int,
) -> pa.Table:
    from lance_dagster.evaluation.benchmarks import evaluate_checkpoint

    with local_folder(manifest) as folder:
        table, items = evaluate_checkpoint(
            folder, manifest.digest, stage, iteration, experiment.settings.model, experiment.settings.evaluation,
            experiment.tasks_path, context.log.info,
        )  # fmt: skip
    write_table(experiment.store.items(manifest.digest), items)
    for row in table.filter(pc.invert(pc.match_substring(table["task"], "/"))).to_pylist():
        context.log.info(f"{stage}: {row['task']} {row['metric']} {row['value']:.4f}")
    return table


def _score_metadata(table: pa.Table) -> dict[str, float]:
    """``eval/<stage>/<task>/<metric>``: numbers that the UI plots over iterations."""
    return {f"eval/{row['stage']}/{row['task']}/{row['metric']}": row["value"] for row in table.to_pylist()}

"""Assets that make data: the seeds, and Algorithm 1 of the paper once per iteration."""

from collections import Counter
from collections.abc import Callable

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.components.experiment import Experiment, table_result
from lance_dagster.components.parquet_io import preview
from lance_dagster.construction.filters.pool import extended_index
from lance_dagster.construction.ledger import funnel
from lance_dagster.construction.seeds.decontaminate import decontaminate
from lance_dagster.construction.seeds.load import SeedLoad, load_seed_instructions, load_seed_reviews
from lance_dagster.engines.registry import SETTINGS_OF_TEXTS
from lance_dagster.errors import TrainingError
from lance_dagster.prompts.prompt_sets import PromptKind
from lance_dagster.report.pictures import ledger_funnel, score_histogram
from lance_dagster.report.render import markdown_image
from lance_dagster.storage.tables import write_table

KINDS = {"parquet", "python"}
PAIR_SWITCHES = (
    "construction.at_limit",
    "construction.original_in_pairs",
    "construction.pair_direction",
    "construction.pairs_per_prompt",
    "construction.rejected_ties",
)


def construction_assets(experiment: Experiment) -> list[dg.AssetsDefinition]:
    """From seed_instructions and seed_reviews to sft_set and preference_set."""
    seed = experiment.settings.seed
    seeds = [
        _seed_asset(experiment, "seed_instructions", seed.instructions, load_seed_instructions),
        _seed_asset(experiment, "seed_reviews", seed.reviews, load_seed_reviews),
    ]
    return [
        *(seeds if experiment.settings.start_from is None else []),
        _reviewed_seed(experiment),
        _instruction_candidates(experiment),
        _preference_candidates(experiment),
        _candidate_ledger(experiment),
        _sft_set(experiment),
        _preference_set(experiment),
    ]


def _seed_asset(experiment: Experiment, name: str, source: str, load: Callable[..., SeedLoad]) -> dg.AssetsDefinition:
    what = {
        "seed_instructions": "Part 1 of Seed_0: (instruction, response) rows that every iteration reviews and expands.",
        "seed_reviews": "Part 2 of Seed_0: (instruction, response, rationale, score) rows that teach M_0 to review.",
    }[name]

    @experiment.asset(
        name,
        KINDS,
        [source, experiment.values("seed.max_words", "seed.control_tokens"), experiment.asked_by],
        partitioned=False,
        description=f"{what} Read from {source}; unusable rows go to {name}_quarantine.parquet with a reason.",
    )
    def seed(context: dg.AssetExecutionContext) -> dg.MaterializeResult[pa.Table]:
        contamination = experiment.settings.construction.filters.contamination
        loaded, hits = decontaminate(
            load(source, experiment.settings.seed, experiment.root),
            experiment.evaluation_index(),
            drop=contamination == "drop",
        )
        if hits.num_rows:
            context.log.warning(f"{source}: {hits.num_rows} rows overlap with the evaluation tasks ({contamination})")
        quarantine = experiment.store.table(f"{name}_quarantine")
        write_table(quarantine, loaded.quarantine)
        hits_path = experiment.store.table(f"{name}_contamination_hits")
        write_table(hits_path, hits)
        counts = ", ".join(f"{reason} {count}" for reason, count in loaded.counts.items() if count)
        context.log.info(f"{source} ({loaded.layout}): {counts}")
        return table_result(
            loaded.rows,
            {
                "source": source,
                "layout": loaded.layout,
                "quarantine": dg.MetadataValue.path(str(quarantine)),
                "quarantine/preview": preview(loaded.quarantine),
                "contamination/hits": hits.num_rows,
                "contamination/table": dg.MetadataValue.path(str(hits_path)),
                "contamination/preview": preview(hits),
                **{f"rows/{reason}": count for reason, count in loaded.counts.items()},
            },
        )

    return seed


def _written_by(experiment: Experiment, *kinds: PromptKind) -> list[str]:
    """For ``uses``: what decides the text and the provenance of every generated row, its sampling aside."""
    prompts = experiment.prompts
    return [experiment.values("method", *SETTINGS_OF_TEXTS), prompts.identity, prompts.digest(*kinds)]


def _reviewed_seed(experiment: Experiment) -> dg.AssetsDefinition:
    @experiment.asset(
        "reviewed_seed",
        KINDS,
        [
            *_written_by(experiment, "review"),
            experiment.values(
                "seed.growth",
                "seed.flawed_rows_reenter",
                "seed.max_rows",
                "construction.review",
                "construction.reviews_per_item",
                "construction.reviews_needed",
                "construction.rereview_seeds",
                "construction.unreviewed_seeds",
                "construction.threshold",
                "construction.branch_at_threshold",
                "construction.seed",
            ),
        ],
        inputs=("seed_instructions",),
        deps=("policy_model",),
        description="Seed_t with the rationale and score (0..10) that M_t gives each row, and the branch it takes: "
        "new instructions below the threshold V, flawed responses from V on.",
    )
    def reviewed_seed(context: dg.AssetExecutionContext, seed_instructions: pa.Table) -> dg.MaterializeResult[pa.Table]:
        with experiment.step(context) as (step, policy):
            table = experiment.method.reviewed_seed(step, policy, experiment.store, seed_instructions)
        branches = Counter(table["branch"].to_pylist())
        return table_result(
            table,
            {
                **step.runner.metadata(),
                **_score_metadata(table),
                **{f"branch/{name}": branches[name] for name in ("instruction", "preference", "none")},
                "score/histogram": _histogram(table, f"Seed_{step.iteration}: review scores"),
            },
        )

    return reviewed_seed


def _instruction_candidates(experiment: Experiment) -> dg.AssetsDefinition:
    @experiment.asset(
        "instruction_candidates",
        KINDS,
        [
            *_written_by(experiment, "new_instruction", "answer"),
            experiment.values(
                "training.stages",
                "construction.pairs",
                "construction.new_instruction",
                "construction.response",
                "construction.samples",
                "construction.responses_per_instruction",
                "seed.control_tokens",
                "construction.seed",
            ),
        ],
        inputs=("reviewed_seed",),
        deps=("policy_model",),
        description="Low branch of Algorithm 1: K new instructions per low-scored seed row, K responses to each.",
    )
    def instruction_candidates(
        context: dg.AssetExecutionContext, reviewed_seed: pa.Table
    ) -> dg.MaterializeResult[pa.Table]:
        with experiment.step(context) as (step, _):
            table = experiment.method.instruction_candidates(step, reviewed_seed)
        return table_result(table, {**step.runner.metadata(), **_generated_metadata(table)})

    return instruction_candidates


def _preference_candidates(experiment: Experiment) -> dg.AssetsDefinition:
    @experiment.asset(
        "preference_candidates",
        KINDS,
        [
            *_written_by(experiment, "flawed_response"),
            experiment.values(
                "training.stages",
                "construction.pairs",
                "construction.flawed_response",
                "construction.samples",
                "seed.control_tokens",
                "construction.seed",
            ),
        ],
        inputs=("reviewed_seed",),
        deps=("policy_model",),
        description="High branch of Algorithm 1: K deliberately flawed responses per high-scored seed row.",
    )
    def preference_candidates(
        context: dg.AssetExecutionContext, reviewed_seed: pa.Table
    ) -> dg.MaterializeResult[pa.Table]:
        with experiment.step(context) as (step, _):
            table = experiment.method.preference_candidates(step, reviewed_seed)
        return table_result(table, {**step.runner.metadata(), **_generated_metadata(table)})

    return preference_candidates


def _candidate_ledger(experiment: Experiment) -> dg.AssetsDefinition:
    filters = experiment.settings.construction.filters

    @experiment.asset(
        "candidate_ledger",
        KINDS,
        [
            *_written_by(experiment, "review"),
            experiment.asked_by,
            experiment.values(
                "construction.filters",
                "construction.review",
                "construction.reviews_per_item",
                "construction.reviews_needed",
                "construction.acceptance",
                "construction.acceptance_judge",
                "construction.accept_above",
                "construction.preference_gap",
                *PAIR_SWITCHES,
                "construction.max_rows_per_seed",
                "construction.max_rows_per_iteration",
                "construction.seed",
            ),
        ],
        inputs=("instruction_candidates", "preference_candidates", "reviewed_seed"),
        deps=("policy_model",),
        description="Every generated row, how far it came through the rules on its text, repetitions, contamination, "
        "ROUGE-L, reward and acceptance, and why it was dropped. Nothing leaves this table.",
    )
    def candidate_ledger(
        context: dg.AssetExecutionContext,
        instruction_candidates: pa.Table,
        preference_candidates: pa.Table,
        reviewed_seed: pa.Table,
    ) -> dg.MaterializeResult[pa.Table]:
        evaluation = experiment.evaluation_index()
        context.log.info(f"contamination: {filters.contamination}, {len(evaluation)} evaluation questions")
        with experiment.step(context, experiment.settings.construction.acceptance_judge) as (step, policy):
            table, hits, unseen = experiment.method.candidate_ledger(
                step, policy, experiment.store, instruction_candidates, preference_candidates, reviewed_seed, evaluation
            )
            index = experiment.store.table("rouge_index", context.partition_key)
            if filters.rouge_scope == "all":
                earlier = policy.earlier_table(experiment.store, "rouge_index")
                write_table(index, extended_index(earlier, table, filters))
            elif index.exists():
                index.unlink()
        if unseen:
            context.log.warning(
                f"rouge_l: {unseen} texts have letters that the words of rouge_score (a-z, 0-9) overlook, so they are "
                "compared in part or not at all. Set construction.filters.rouge_words to 'unicode'."
            )
        hits_path = experiment.store.table("contamination_hits", context.partition_key)
        write_table(hits_path, hits)
        counts = funnel(table)
        kept, generated = table.filter(table["kept"]).num_rows, table.num_rows
        return table_result(
            table,
            {
                **step.runner.metadata(),
                **_score_metadata(table),
                **{f"funnel/{name}": count for name, count in counts.items()},
                "contamination/questions": len(evaluation),
                "contamination/hits": hits.num_rows,
                "contamination/table": dg.MetadataValue.path(str(hits_path)),
                "contamination/preview": preview(hits),
                "rouge_l/unseen_texts": unseen,
                "filter/kept_fraction": kept / generated if generated else 0.0,
                "funnel/picture": dg.MetadataValue.md(markdown_image(ledger_funnel(step.iteration, table), "funnel")),
                "score/histogram": _histogram(table, f"Iteration {step.iteration}: rewards of candidates"),
            },
        )

    return candidate_ledger


def _sft_set(experiment: Experiment) -> dg.AssetsDefinition:
    training = experiment.settings.training

    @experiment.asset(
        "sft_set",
        KINDS,
        [
            experiment.prompts.identity,
            experiment.prompts.digest("review"),
            experiment.values(
                "method",
                "training.stages",
                "training.accumulate",
                "training.replay_seed",
                "training.replay_reviews",
                *(["construction.threshold"] if training.replay_seed == "accepted" else []),
            ),
        ],
        inputs=("candidate_ledger", "reviewed_seed", "seed_reviews"),
        deps=("policy_model",),
        description="D^s: accepted (instruction, response) rows of all iterations so far, and the replayed seed rows.",
    )
    def sft_set(
        context: dg.AssetExecutionContext, candidate_ledger: pa.Table, reviewed_seed: pa.Table, seed_reviews: pa.Table
    ) -> dg.MaterializeResult[pa.Table]:
        with experiment.step(context) as (step, policy):
            table = experiment.method.sft_set(
                step, policy, experiment.store, candidate_ledger, reviewed_seed, seed_reviews
            )
        if "sft" in training.stages:
            _require_rows(experiment, context.partition_key, "sft_set", table, candidate_ledger, "accept_above")
        origins = Counter(table["origin"].to_pylist())
        new = pc.sum(pc.equal(table["iteration"], step.iteration)).as_py() or 0
        return table_result(
            table,
            {"rows/new": new, **{f"rows/{name}": origins[name] for name in ("generated", "seed", "review")}},
        )

    return sft_set


def _preference_set(experiment: Experiment) -> dg.AssetsDefinition:
    training = experiment.settings.training

    @experiment.asset(
        "preference_set",
        KINDS,
        [
            experiment.prompts.digest(),
            experiment.values(
                "method",
                "training.stages",
                "training.accumulate",
                "construction.pairs",
                "construction.acceptance",
                "construction.preference_gap",
                *PAIR_SWITCHES,
                "prompts.system_in_preferences",
            ),
        ],
        inputs=("candidate_ledger", "reviewed_seed"),
        deps=("policy_model",),
        description="D^p: (prompt, chosen, rejected) pairs of all iterations so far, ordered by the reward of M_t.",
    )
    def preference_set(
        context: dg.AssetExecutionContext, candidate_ledger: pa.Table, reviewed_seed: pa.Table
    ) -> dg.MaterializeResult[pa.Table]:
        with experiment.step(context) as (step, policy):
            table = experiment.method.preference_set(step, policy, experiment.store, candidate_ledger, reviewed_seed)
        if "dpo" in training.stages:
            key = context.partition_key
            _require_rows(experiment, key, "preference_set", table, candidate_ledger, "preference_gap")
        new = pc.sum(pc.equal(table["iteration"], step.iteration)).as_py() or 0
        margin = pc.mean(pc.subtract(table["chosen_score"], table["rejected_score"])).as_py()
        return table_result(table, {"rows/new": new} | ({} if margin is None else {"score/mean_margin": margin}))

    return preference_set


def _score_metadata(table: pa.Table) -> dict[str, float | int]:
    """How many reviews parsed, and the mean score: numbers that the UI plots over iterations."""
    reviews = pc.list_flatten(table["scores"])
    share = 1 - reviews.null_count / max(1, len(reviews))
    mean = pc.mean(table["score"]).as_py()
    figures = {"review/parsed_share": share} if len(reviews) else {}
    return figures | ({} if mean is None else {"score/mean": mean})


def _generated_metadata(table: pa.Table) -> dict[str, int]:
    kinds = Counter(table["kind"].to_pylist())
    reasons = Counter(reason for reason in table["drop_reason"].to_pylist() if reason)
    return {f"rows/{name}": count for name, count in sorted({**kinds, **reasons}.items())}


def _histogram(table: pa.Table, title: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(markdown_image(score_histogram(table, title), title))


def _require_rows(
    experiment: Experiment, partition: str, asset: str, table: pa.Table, ledger: pa.Table, setting: str
) -> None:
    if table.num_rows:
        return
    counts = ", ".join(f"{name} {count}" for name, count in funnel(ledger).items()) or "no candidates at all"
    raise TrainingError(
        f"{experiment.name}/{asset}[{partition}] is empty, so there is nothing to train on. Candidates: {counts}. "
        f"Look at candidate_ledger[{partition}] for the reasons; lower construction.{setting} or widen the filters "
        "that dropped most, then re-materialise from candidate_ledger."
    )

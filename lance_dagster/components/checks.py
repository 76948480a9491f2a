"""Asset checks: every gate once per iteration, with its severity.

A gate blocks what follows only where training on the artifact, or promoting it, would be harm. The others are errors
(the artifact is not what it should be) or warnings (look at it). ``refuse_unpromotable`` holds the blocking gates of
checkpoints against the next iteration too, because that one is another run.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dagster as dg

from lance_dagster.components.experiment import Experiment, clear_failures
from lance_dagster.components.staleness import Events, Place, Situation, Wiring, name_of
from lance_dagster.errors import ArtifactError, EvaluationError
from lance_dagster.gates import checkpoints, scores, tables
from lance_dagster.gates.verdict import Verdict
from lance_dagster.report.scores import BASELINE_STAGES, LOOP_STAGES, ScoreRow, score_rows
from lance_dagster.storage.checkpoints import local_folder
from lance_dagster.storage.experiment_store import UNPARTITIONED, iteration_key
from lance_dagster.storage.tables import read_table

Level = Literal["blocks", "error", "warning"]
IS_CURRENT = "is_current"


@dataclass(frozen=True)
class Gate:
    """One check of an asset. ``judge`` is given the partition key, ``current`` for assets without iterations."""

    name: str
    level: Level
    description: str
    judge: Callable[[str], Verdict]


def gates_of(experiment: Experiment) -> dict[str, list[Gate]]:
    """The gates of every asset that has any."""
    return {
        "seed_instructions": [_no_evaluation_item(experiment, "seed_instructions", "instruction")],
        "initial_checkpoint": _training_gates(experiment, "initial_checkpoint"),
        "baseline_scores": [_baseline_complete(experiment)],
        "reviewed_seed": _review_gates(experiment, "reviewed_seed"),
        "candidate_ledger": [*_review_gates(experiment, "candidate_ledger"), _kept_share(experiment)],
        "sft_set": [_no_evaluation_item(experiment, "sft_set", "prompt")],
        "preference_set": [_no_evaluation_item(experiment, "preference_set", "prompt"), *_pair_gates(experiment)],
        "sft_checkpoint": _training_gates(experiment, "sft_checkpoint"),
        "dpo_checkpoint": [*_training_gates(experiment, "dpo_checkpoint"), _first_loss(experiment)],
        "eval_scores": _score_gates(experiment),
    }


def experiment_checks(experiment: Experiment, wiring: Wiring) -> list[dg.AssetChecksDefinition]:
    """One op of checks per asset, so that an artifact's checks are run together or one by one from the web UI.

    Every asset that is made of others has ``is_current`` besides its gates.
    """
    gates = gates_of(experiment)
    made = [key.path[-1] for key, parents in wiring.parents.items() if parents]
    own = [asset for asset in dict.fromkeys([*gates, *made]) if experiment.key(asset) in wiring.parents]
    return [_checks(experiment, wiring, asset, gates.get(asset, [])) for asset in own]


def refuse_unpromotable(experiment: Experiment, iteration: int) -> None:
    """Raise ArtifactError if a blocking gate of the checkpoints that iteration ``iteration`` made does not pass."""
    key = iteration_key(iteration)
    gates = gates_of(experiment)
    for asset in ("sft_checkpoint", "dpo_checkpoint"):
        for gate in gates[asset]:
            verdict = gate.judge(key) if gate.level == "blocks" else None
            if verdict is not None and not verdict.passed:
                raise ArtifactError(
                    f"{experiment.name}/{asset}[{key}] does not pass its check {gate.name}, so it is not promoted to "
                    f"iteration {iteration_key(iteration + 1)}: {verdict.explanation}. Mend the cause, then run "
                    f"`dg launch --job {experiment.name}_one_iteration --partition {key}`."
                )


def _checks(experiment: Experiment, wiring: Wiring, asset: str, gates: Sequence[Gate]) -> dg.AssetChecksDefinition:
    key = experiment.key(asset)
    partitions = None if wiring.partitions[key] is None else experiment.iterations
    with warnings.catch_warnings():
        # Preview in Dagster 1.13, and chosen knowingly: without it the UI shows the verdict of the last iteration only.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        specs = [
            dg.AssetCheckSpec(
                gate.name,
                asset=key,
                description=gate.description,
                blocking=gate.level == "blocks",
                partitions_def=partitions,
            )
            for gate in gates
        ]
        if wiring.parents[key]:
            specs.append(
                dg.AssetCheckSpec(
                    IS_CURRENT,
                    asset=key,
                    description="It is made of its inputs and settings as they are now; says which of them moved.",
                    partitions_def=partitions,
                )
            )

    @dg.multi_asset_check(name=f"{experiment.name}__{asset}__checks", specs=specs, can_subset=True)
    def checks(context: dg.AssetCheckExecutionContext) -> Iterable[dg.AssetCheckResult]:
        if partitions is not None and not context.has_partition_key:
            raise dg.Failure(
                f"The checks of {asset} are judged per iteration, in the run that makes it, and Dagster cannot run "
                f"them on their own. Materialise {asset} of an iteration, or evolution_report, which lists what is out "
                "of date.",
                allow_retries=False,
            )
        partition = context.partition_key if context.has_partition_key else UNPARTITIONED
        wanted = {selected.name for selected in context.selected_asset_check_keys}
        for gate in gates:
            if gate.name in wanted:
                verdict = clear_failures(gate.judge)(partition)
                yield _result(key, gate.name, gate.level, verdict, context.log.warning)
        if IS_CURRENT in wanted:
            place = (key, context.partition_key if context.has_partition_key else None)
            verdict = is_current(Situation(Events(context.instance, wiring)), place)
            yield _result(key, IS_CURRENT, "warning", verdict, context.log.warning)

    return checks


def is_current(situation: Situation, place: Place) -> Verdict:
    """Nothing that the partition is made of has moved since, nor anything above it, in earlier iterations too."""
    cause = situation.cause(place)
    if cause is None:
        return Verdict(True, f"{name_of(place)} is made of its inputs and settings as they are now", {"moved": 0})
    moved = situation.moved(cause)
    text = f"moved since {name_of(cause)} was made: {', '.join(moved)}"
    if cause != place:
        text += f"; {name_of(place)} builds on it"
    return Verdict(False, text, {"moved": len(moved)})


def _result(
    key: dg.AssetKey, name: str, level: Level, verdict: Verdict, warn: Callable[[str], None]
) -> dg.AssetCheckResult:
    if not verdict.passed:
        warn(f"{name}: {verdict.explanation}")
    return dg.AssetCheckResult(
        passed=verdict.passed,
        asset_key=key,
        check_name=name,
        severity=dg.AssetCheckSeverity.WARN if level == "warning" else dg.AssetCheckSeverity.ERROR,
        description=verdict.explanation,
        metadata=dict(verdict.figures),
    )


def _review_gates(experiment: Experiment, asset: str) -> list[Gate]:
    limits = experiment.settings.gates

    def read(partition: str) -> object:
        return read_table(experiment.store.table(asset, partition))

    return [
        Gate(
            "reviews_parse",
            "warning",
            "Share of the reviews that gave a score. One that does not parse is missing, never 0.",
            lambda partition: tables.reviews_parse(read(partition), limits.parsed_share),
        ),
        Gate(
            "scores_spread",
            "warning",
            "Standard deviation of the scores: a judge that scores everything alike selects nothing.",
            lambda partition: tables.score_spread(read(partition), limits.score_spread),
        ),
    ]


def _kept_share(experiment: Experiment) -> Gate:
    band = experiment.settings.gates.kept_share
    return Gate(
        "kept_share",
        "warning",
        "Share of the generated rows that came through filters, reward and acceptance.",
        lambda key: tables.kept_share(read_table(experiment.store.table("candidate_ledger", key)), band),
    )


def _no_evaluation_item(experiment: Experiment, asset: str, column: str) -> Gate:
    filters = experiment.settings.construction.filters

    def judge(partition: str) -> Verdict:
        index = experiment.evaluation_index(always=True)
        stored = None if partition == UNPARTITIONED else partition
        return tables.no_evaluation_item(read_table(experiment.store.table(asset, stored)), column, index)

    return Gate(
        "no_evaluation_item",
        # Where the experiment chose not to filter, the check informs and does not stop.
        "blocks" if filters.contamination == "drop" else "warning",
        "No row asks what an evaluation task asks; training on one would make its score worthless.",
        judge,
    )


def _pair_gates(experiment: Experiment) -> list[Gate]:
    def pairs(key: str) -> object:
        return read_table(experiment.store.table("preference_set", key))

    return [
        Gate(
            "sides_differ",
            "blocks",
            "Chosen and rejected of a pair are different texts.",
            lambda key: tables.sides_differ(pairs(key)),
        ),
        Gate(
            "length_gap",
            "warning",
            "Mean length of chosen against rejected responses: where one side is much longer, DPO learns length.",
            lambda key: tables.length_gap(pairs(key), experiment.settings.gates.length_ratio),
        ),
    ]


def _training_gates(experiment: Experiment, asset: str) -> list[Gate]:
    def metrics(partition: str) -> dict[str, object]:
        return experiment.store.checkpoint(asset, partition).metrics

    def weights(partition: str) -> Verdict:
        with local_folder(experiment.store.checkpoint(asset, partition)) as folder:
            return checkpoints.finite_weights(Path(folder))

    return [
        Gate(
            "end_token_learned",
            "blocks",
            "The end token is in the labels of every row: a model that never saw it does not stop.",
            lambda partition: checkpoints.end_token_learned(metrics(partition)),
        ),
        Gate(
            "no_double_start_token",
            "blocks",
            "No training row starts with two start tokens.",
            lambda partition: checkpoints.no_double_start_token(metrics(partition)),
        ),
        Gate(
            "same_template",
            "blocks",
            "The template of training is that of generation, token for token.",
            lambda partition: checkpoints.same_template(metrics(partition)),
        ),
        Gate("finite_weights", "blocks", "No weight is NaN or infinite.", weights),
        Gate(
            "loss_fell",
            "warning",
            "The loss at the end is below the loss at the start.",
            lambda partition: checkpoints.loss_fell(metrics(partition)),
        ),
    ]


def _first_loss(experiment: Experiment) -> Gate:
    def judge(key: str) -> Verdict:
        metrics = experiment.store.checkpoint("dpo_checkpoint", key).metrics
        return checkpoints.first_loss_is_ln_2(metrics, experiment.settings.gates.first_loss_tolerance)

    return Gate(
        "first_loss_is_ln_2",
        "blocks",
        "The first DPO loss is ln 2, or the reference is not the model that training started from.",
        judge,
    )


def _baseline_complete(experiment: Experiment) -> Gate:
    measured = experiment.settings.evaluation.noise_floor == "retrain"
    stages = BASELINE_STAGES if measured else BASELINE_STAGES[:2]
    return Gate(
        "scores_complete",
        "error",
        "M, M_0 and, for the noise floor, M_0 again are scored on all tasks and the same documents, in range.",
        lambda _: scores.scores_complete(read_table(experiment.store.table("baseline_scores")), [], stages),
    )


def _score_gates(experiment: Experiment) -> list[Gate]:
    most = experiment.settings.gates.score_drop
    store = experiment.store

    def complete(key: str) -> Verdict:
        own = read_table(store.table("eval_scores", key))
        try:
            baseline = read_table(store.table("baseline_scores"))
        except ArtifactError as error:
            return Verdict(False, f"not compared with the baseline: {error}")
        return scores.scores_complete(baseline, [(int(key), own)], LOOP_STAGES)

    def against(pick: Callable[[Sequence[ScoreRow], int], ScoreRow]) -> Callable[[str], Verdict]:
        def judge(key: str) -> Verdict:
            iteration = int(key)
            read = [iteration] if iteration == 0 else [iteration - 1, iteration]
            try:
                found = [(each, read_table(store.table("eval_scores", iteration_key(each)))) for each in read]
                rows, floor = score_rows(read_table(store.table("baseline_scores")), found)
            except (ArtifactError, EvaluationError) as error:
                return Verdict(False, f"not compared: {error}")
            return scores.not_worse(_promoted(rows, iteration), pick(rows, iteration), floor, most)

        return judge

    return [
        Gate(
            "scores_complete",
            "error",
            "Both checkpoints are scored on all tasks, on the documents of the baseline, in range.",
            complete,
        ),
        Gate(
            "not_below_previous",
            "warning",
            "The new model against the one before it, in standard errors of the difference.",
            against(lambda rows, iteration: rows[1] if iteration == 0 else _promoted(rows, iteration - 1)),
        ),
        Gate(
            "not_below_initial",
            "warning",
            "The new model against M_0, in standard errors of the difference.",
            against(lambda rows, _: rows[1]),
        ),
        Gate(
            "not_below_base",
            "warning",
            "The new model against the untouched base, in standard errors of the difference.",
            against(lambda rows, _: rows[0]),
        ),
    ]


def _promoted(rows: Sequence[ScoreRow], iteration: int) -> ScoreRow:
    """The last checkpoint of an iteration: M_t^D, or M_t^S where there is no other."""
    return [row for row in rows if row.iteration == iteration][-1]

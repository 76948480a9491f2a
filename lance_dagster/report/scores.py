"""Scores of every checkpoint, and what a change is worth against M_0, the untouched base and the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.errors import EvaluationError

BASELINE_STAGES = ("base", "initial", "initial_again")  # the last one only where the noise floor was measured
LOOP_STAGES = ("sft", "dpo")
PREFERRED_METRICS = ("exact_match", "acc_norm", "acc")


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task; value and standard error as shares of 1."""

    task: str
    metric: str
    value: float
    stderr: float | None
    documents: int


@dataclass(frozen=True)
class Change:
    """A difference of two means, as a share of 1, with the standard error of that difference.

    ``beyond_noise`` is None where a standard error is missing and the noise floor alone does not decide.
    """

    value: float
    stderr: float | None
    beyond_noise: bool | None


@dataclass(frozen=True)
class ScoreRow:
    """One checkpoint. ``iteration`` is -1 for the baseline; ``beyond_noise`` is against M_0 and None for the base.

    ``mean`` is over ``tasks``; its ``stderr`` is sqrt(sum of squares) / n, which takes tasks to be independent,
    and None if a task has none. ``subscores`` are tasks named ``<task>/<part>`` and never enter the mean.
    """

    stage: str
    iteration: int
    label: str
    model_digest: str
    tasks: tuple[TaskScore, ...]
    mean: float
    stderr: float | None
    documents: int
    against_base: Change
    against_initial: Change
    beyond_noise: bool | None
    subscores: tuple[TaskScore, ...]
    all_metrics: tuple[TaskScore, ...]


@dataclass(frozen=True)
class _Measured:
    """A checkpoint on its own, before it is compared with others."""

    stage: str
    iteration: int
    model_digest: str
    tasks: tuple[TaskScore, ...]
    subscores: tuple[TaskScore, ...]
    all_metrics: tuple[TaskScore, ...]
    mean: float
    stderr: float | None


def score_rows(
    baseline: pa.Table, iterations: Sequence[tuple[int, pa.Table]]
) -> tuple[tuple[ScoreRow, ...], float | None]:
    """Rows in order base, M_0, M_0 again, then SFT and DPO of each iteration; and the noise floor |M_0 again - M_0|.

    The floor is None, which is not 0, where no second M_0 was trained.
    ``baseline`` and the tables of ``iterations`` are EVAL_SCORES. Raises EvaluationError for a missing stage, a value
    that is no share, or checkpoints that were not scored on the same documents by the same metric.
    """
    found = _by_stage(baseline, -1, BASELINE_STAGES)
    for stage in ("base", "initial"):
        if stage not in found:
            raise EvaluationError(f"baseline_scores has no rows of stage {stage!r}; materialise baseline_scores again")
    base, initial, again = found["base"], found["initial"], found.get("initial_again")
    measured = [base, initial] if again is None else [base, initial, again]
    for iteration, table in iterations:
        stages = _by_stage(table, iteration, LOOP_STAGES)
        if not stages:
            raise EvaluationError(f"eval_scores of iteration {iteration:03d} is empty; materialise it again")
        measured += [stages[stage] for stage in LOOP_STAGES if stage in stages]
    for other in measured:
        _refuse_unlike(other, initial)
    trained_again = again is not None and again.model_digest != initial.model_digest
    floor = abs(again.mean - initial.mean) if again is not None and trained_again else None
    return tuple(_row(each, base, initial, floor or 0.0) for each in measured), floor


def label(stage: str, iteration: int) -> str:
    """The paper's name of a checkpoint: M, M_0, M_0^S, M_0^D = M_1."""
    names = {"base": "M", "initial": "M_0", "initial_again": "M_0 again"}
    loop = {"sft": f"M_{iteration}^S", "dpo": f"M_{iteration}^D = M_{iteration + 1}"}
    return {**names, **loop}[stage]


def _row(own: _Measured, base: _Measured, initial: _Measured, floor: float) -> ScoreRow:
    against_initial = compare(own, initial, floor)
    return ScoreRow(
        stage=own.stage,
        iteration=own.iteration,
        label=label(own.stage, own.iteration),
        model_digest=own.model_digest,
        tasks=own.tasks,
        mean=own.mean,
        stderr=own.stderr,
        documents=sum(score.documents for score in own.tasks),
        against_base=compare(own, base, floor),
        against_initial=against_initial,
        beyond_noise=None if own.stage == "base" else against_initial.beyond_noise,
        subscores=own.subscores,
        all_metrics=own.all_metrics,
    )


def compare(own: _Measured | ScoreRow, other: _Measured | ScoreRow, floor: float) -> Change:
    """What ``own`` scores more than ``other``; a change within the noise floor is not beyond noise."""
    if own is other:
        return Change(0.0, 0.0, False)
    value = own.mean - other.mean
    stderr = None if own.stderr is None or other.stderr is None else math.hypot(own.stderr, other.stderr)
    if abs(value) <= floor:
        return Change(value, stderr, False)
    return Change(value, stderr, None if stderr is None else abs(value) > 2 * stderr)


def _by_stage(table: pa.Table, iteration: int, stages: Sequence[str]) -> dict[str, _Measured]:
    unknown = set(table["stage"].unique().to_pylist()) - set(stages)
    if unknown or set(table["iteration"].unique().to_pylist()) - {iteration}:
        raise EvaluationError(
            f"expected scores of iteration {iteration} and stages {', '.join(stages)}; got iterations "
            f"{table['iteration'].unique().to_pylist()} and stages {table['stage'].unique().to_pylist()}"
        )
    present = table["stage"].unique().to_pylist()
    return {stage: _measure(table.filter(pc.equal(table["stage"], stage)), stage, iteration) for stage in present}


def _measure(table: pa.Table, stage: str, iteration: int) -> _Measured:
    name = f"{label(stage, iteration)} (stage {stage})"
    digests = table["model_digest"].unique().to_pylist()
    if len(digests) > 1:
        raise EvaluationError(f"the scores of {name} are of several models ({', '.join(digests)}); evaluate again")
    columns = ("task", "metric", "value", "stderr", "documents")
    scores = tuple(TaskScore(**row) for row in table.select(columns).to_pylist())
    seen: set[tuple[str, str]] = set()
    for score in scores:
        if (score.task, score.metric) in seen:
            raise EvaluationError(f"{name}: task {score.task!r} has metric {score.metric!r} twice; evaluate again")
        if not (math.isfinite(score.value) and (score.stderr is None or math.isfinite(score.stderr))):
            raise EvaluationError(f"{name}: task {score.task!r}, metric {score.metric!r} is not a finite number")
        seen.add((score.task, score.metric))
    main = _main_metric(scores)
    whole = {score.task for score in main}
    subscores = tuple(score for score in main if _is_part(score.task, whole))
    tasks = tuple(score for score in main if not _is_part(score.task, whole))
    for score in tasks:
        if not 0 <= score.value <= 1:
            raise EvaluationError(
                f"{name}: {score.metric} of task {score.task!r} is {score.value:g}, not a share in 0..1, so it cannot "
                "enter a mean over tasks; leave the task out of evaluation.tasks"
            )
    errors = [score.stderr for score in tasks if score.stderr is not None]
    return _Measured(
        stage=stage,
        iteration=iteration,
        model_digest=digests[0],
        tasks=tasks,
        subscores=subscores,
        all_metrics=scores,
        mean=math.fsum(score.value for score in tasks) / len(tasks),
        stderr=math.hypot(*errors) / len(tasks) if len(errors) == len(tasks) else None,
    )


def _main_metric(scores: Sequence[TaskScore]) -> tuple[TaskScore, ...]:
    """One score per task, in the order of first appearance. lm-eval appends the filter: ``exact_match,strict``."""
    of_task: dict[str, list[TaskScore]] = {}
    for score in scores:
        of_task.setdefault(score.task, []).append(score)
    return tuple(min(metrics, key=_preference) for metrics in of_task.values())


def _preference(score: TaskScore) -> int:
    name = score.metric.split(",")[0]
    return PREFERRED_METRICS.index(name) if name in PREFERRED_METRICS else len(PREFERRED_METRICS)


def _is_part(task: str, tasks: set[str]) -> bool:
    pieces = task.split("/")
    return any("/".join(pieces[:count]) in tasks for count in range(1, len(pieces)))


def _refuse_unlike(own: _Measured, initial: _Measured) -> None:
    for which in ("tasks", "subscores"):
        mine, theirs = ({(s.task, s.metric, s.documents) for s in getattr(m, which)} for m in (own, initial))
        if mine != theirs:
            raise EvaluationError(
                f"{label(own.stage, own.iteration)} and M_0 are not comparable: (task, metric, documents) "
                f"{sorted(mine - theirs)} against {sorted(theirs - mine)}; materialise both evaluations again"
            )

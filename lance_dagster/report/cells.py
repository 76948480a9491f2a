"""The tables of a report as text cells, the same for Markdown, HTML and the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from lance_dagster.report.funnel import Count
from lance_dagster.report.headline import points
from lance_dagster.report.samples import Samples
from lance_dagster.report.scores import BASELINE_STAGES, Change, ScoreRow, TaskScore
from lance_dagster.report.summary import Summary

NONE = "\N{EN DASH}"  # nothing to say
STAGE_NAMES = {"base": "untouched base", "initial": "initial", "initial_again": "initial again"}


@dataclass(frozen=True)
class Cells:
    """One table. ``align`` has one letter per column: l (left), r (right) or t (running text, left and wrapped)."""

    header: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]


def score_cells(summary: Summary) -> Cells:
    """Percent with one standard error. With one task its own column is the mean."""
    tasks = [score.task for score in summary.scores[0].tasks]
    columns = (*tasks, "mean") if len(tasks) > 1 else (tasks[0],)
    return Cells(
        header=("checkpoint", "stage", *columns, "against base", "against M_0", "beyond noise"),
        align="ll" + "r" * len(columns) + "rrl",
        rows=tuple(_score_row(row, len(tasks)) for row in summary.scores),
    )


def _score_row(row: ScoreRow, tasks: int) -> tuple[str, ...]:
    values = tuple(_value(score.value, score.stderr) for score in row.tasks) if tasks > 1 else ()
    compared = row.stage not in ("base", "initial")
    noise = {True: "yes", False: "no", None: "unknown"}[row.beyond_noise] if compared else NONE
    return (
        row.label,
        _stage(row),
        *values,
        _value(row.mean, row.stderr),
        NONE if row.stage == "base" else points(row.against_base),
        NONE if row.stage == "initial" else points(row.against_initial),
        noise,
    )


def seed_cells(summary: Summary) -> Cells:
    """What each iteration read, and which branch the seeds took."""
    rows = tuple(
        (
            f"{funnel.iteration:03d}",
            str(funnel.seeds),
            NONE if funnel.reviews_parsed_share is None else f"{100 * funnel.reviews_parsed_share:.1f} %",
            _mean(funnel.mean_seed_score),
            *(str(branch.rows) for branch in funnel.branches),
        )
        for funnel in summary.funnels
    )
    branches = ("instruction branch", "preference branch", "no branch")
    return Cells(("iteration", "seeds", "reviews parsed", "mean seed score", *branches), "lrrrrrr", rows)


def set_cells(summary: Summary) -> Cells:
    """The training sets of each iteration."""
    rows = tuple(
        (
            f"{funnel.iteration:03d}",
            *(str(count) for count in (funnel.sft_rows_new, funnel.sft_rows, funnel.pairs_new, funnel.pairs)),
            _mean(funnel.mean_kept_reward),
        )
        for funnel in summary.funnels
    )
    header = ("iteration", "SFT rows new", "SFT rows total", "pairs new", "pairs total", "mean reward of kept")
    return Cells(header, "lrrrrr", rows)


def funnel_cells(summary: Summary) -> Cells:
    """Candidates of each kind: generated = kept + dropped."""
    rows = tuple(
        (
            f"{funnel.iteration:03d}",
            kind.kind.replace("_", " "),
            str(kind.generated),
            str(kind.kept),
            f"{100 * kind.kept / kind.generated:.1f} %" if kind.generated else NONE,
            str(sum(count.rows for count in kind.dropped)),
            _reasons(kind.dropped),
        )
        for funnel in summary.funnels
        for kind in funnel.kinds
    )
    header = ("iteration", "kind", "generated", "kept", "kept share", "dropped", "dropped because")
    return Cells(header, "llrrrrt", rows)


def drift_cells(summary: Summary) -> Cells:
    """One row per iteration and reference model."""
    rows = tuple(
        (f"{row.iteration:03d}", row.against, f"{row.kl:.4f}", f"{row.weight_distance:.4f}", f"{row.response_nll:.4f}")
        for row in summary.drift
    )
    header = ("iteration", "against", "KL, nats per token", "relative weight distance", "NLL of seed responses")
    return Cells(header, "llrrr", rows)


def cost_cells(summary: Summary) -> Cells:
    """One row per iteration: what was generated for it in all its runs, and what a kept row costs."""
    rows = []
    for row in summary.costs:
        each = NONE if row.per_kept_row is None else f"{row.per_kept_row:.4g} {row.currency}"
        tokens = (f"{row.requests:,}", f"{row.prompt_tokens:,}", f"{row.completion_tokens:,}")
        seconds = (f"{row.seconds:,.0f}", f"{row.gpu_seconds:,.0f}")
        cost = (f"{row.cost:.4g} {row.currency}", f"{row.kept_rows:,}", each)
        rows.append((f"{row.iteration:03d}", *tokens, *seconds, *cost))
    tokens_header = ("requests", "tokens in", "tokens out")
    header = ("iteration", *tokens_header, "seconds", "GPU seconds", "cost", "kept rows", "per kept row")
    return Cells(header, "l" + "r" * 8, tuple(rows))


def subscore_cells(summary: Summary) -> Cells:
    """One row per part of a task, one column per checkpoint, and the last against M_0."""
    initial, last = summary.scores[1], summary.scores[-1]
    shown = [row for row in summary.scores if row.stage != "initial_again"]
    rows = []
    for part in (score.task for score in initial.subscores):
        values = [f"{100 * _part(row, part).value:.1f}" for row in shown]
        change = NONE if last.stage in BASELINE_STAGES else _part_change(_part(last, part), _part(initial, part))
        rows.append((part, *values, change))
    header = ("part", *(row.label.split(" = ")[-1] for row in shown), "last against M_0")
    return Cells(header, "l" + "r" * (len(shown) + 1), tuple(rows))


def sample_cells(samples: Samples) -> tuple[Cells, Cells, Cells]:
    """SFT rows, pairs and dropped rows of one iteration."""
    sft = [(_mean(row.score), row.prompt, row.response) for row in samples.sft]
    pairs = [
        (f"{row.chosen_score:.1f} / {row.rejected_score:.1f}", row.prompt, row.chosen, row.rejected)
        for row in samples.pairs
    ]
    dropped = [
        (row.drop_reason, row.kind.replace("_", " "), _mean(row.score), row.instruction, row.response or NONE)
        for row in samples.dropped
    ]
    return (
        Cells(("reward", "kept instruction", "response"), "rtt", tuple(sft)),
        Cells(("rewards", "paired instruction", "chosen", "rejected"), "rttt", tuple(pairs)),
        Cells(("dropped because", "kind", "reward", "instruction", "response"), "llrtt", tuple(dropped)),
    )


def reading_notes(summary: Summary) -> tuple[str, ...]:
    """How the figures are computed, in words."""
    documents = summary.scores[0].documents
    tasks = summary.scores[0].tasks
    metrics = ", ".join(f"{score.task} ({score.metric}, {score.documents} documents)" for score in tasks)
    return (
        f"Tasks: {metrics}; {documents} documents in all. Scores are percentages, changes are points.",
        "± is one standard error. That of a mean over tasks is the root of the summed squares divided by the number of "
        "tasks, which takes tasks to be independent; that of a change takes the two checkpoints to be independent.",
        f"{_noise(summary.noise_floor)} About one change in twenty passes the first test by chance.",
    )


def _noise(floor: float | None) -> str:
    if floor is None:
        return (
            "A change is beyond noise if it is larger than two of its standard errors, which are those of drawing the "
            "documents. The noise floor, how far two trainings with unlike seeds are apart, was not measured "
            "(evaluation.noise_floor: off): a change beyond noise may be no more than another seed would make."
        )
    return (
        "A change is beyond noise if it is larger than two of its standard errors and larger than the noise floor: the "
        f"difference of two M_0, trained with unlike seeds, here {100 * floor:.1f} points."
    )


def _part(row: ScoreRow, task: str) -> TaskScore:
    return next(score for score in row.subscores if score.task == task)


def _part_change(last: TaskScore, initial: TaskScore) -> str:
    known = last.stderr is not None and initial.stderr is not None
    stderr = ((last.stderr or 0) ** 2 + (initial.stderr or 0) ** 2) ** 0.5 if known else None
    return points(Change(last.value - initial.value, stderr, None))


def _reasons(dropped: tuple[Count, ...]) -> str:
    return ", ".join(f"{count.name} {count.rows}" for count in dropped) or NONE


def _stage(row: ScoreRow) -> str:
    return STAGE_NAMES.get(row.stage) or f"{row.stage.upper()} {row.iteration:03d}"


def _value(value: float, stderr: float | None) -> str:
    return f"{100 * value:.1f}" if stderr is None else f"{100 * value:.1f} ± {100 * stderr:.1f}"


def _mean(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"

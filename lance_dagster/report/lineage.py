"""How rounds hang together: which model and data each checkpoint came from, and the way of some rows to their seeds."""

from __future__ import annotations

from dataclasses import dataclass

from lance_dagster.construction.policy import PolicyModel
from lance_dagster.report.cells import NONE, Cells
from lance_dagster.report.samples import Samples
from lance_dagster.report.summary import Summary
from lance_dagster.report.trace import Trace, Tracer
from lance_dagster.storage.experiment_store import ExperimentStore, iteration_key


@dataclass(frozen=True)
class Trained:
    """A stage of an iteration: the digests of the weights it started from, of its data, and of its checkpoint."""

    stage: str  # sft | dpo
    model: str  # what the checkpoint is called, such as M_0^S
    parent: str
    data: str
    rows: int
    digest: str


@dataclass(frozen=True)
class Round:
    """One iteration: its policy model and where that lies, and its training stages."""

    iteration: int
    policy: str  # such as M_1 = dpo_checkpoint[000]
    stages: tuple[Trained, ...]


@dataclass(frozen=True)
class Lineage:
    """Rounds in order, and traces of the report's sample rows."""

    experiment: str
    rounds: tuple[Round, ...]
    traces: tuple[tuple[int, tuple[Trace, ...]], ...]  # iteration, traces of rows that it wrote


def build_lineage(store: ExperimentStore, iterations: int, summary: Summary) -> Lineage:
    """The lineage of the iterations that ``summary`` is about. Raises ArtifactError for damaged tables."""
    tracer = Tracer(store, iterations)
    return Lineage(
        summary.experiment,
        tuple(_round(store, tracer, funnel.iteration) for funnel in summary.funnels),
        tuple((samples.iteration, tuple(map(tracer.trace, _rows(samples)))) for samples in summary.samples),
    )


def round_cells(lineage: Lineage) -> Cells:
    """One line per training stage."""
    rows = []
    for each in lineage.rounds:
        for trained in each.stages:
            rows.append(
                (
                    f"{each.iteration:03d}",
                    each.policy,
                    trained.stage.upper(),
                    trained.parent,
                    f"{trained.rows:,} rows {trained.data}" if trained.data else NONE,
                    f"{trained.model} {trained.digest}",
                )
            )
    return Cells(("iteration", "policy model", "stage", "starts from", "trained on", "gives"), "llllll", tuple(rows))


def _round(store: ExperimentStore, tracer: Tracer, iteration: int) -> Round:
    policy, key = PolicyModel.load(store, iteration).model, iteration_key(iteration)
    stages = []
    for stage, data, model in (
        ("sft", "sft_set", f"M_{iteration}^S"),
        ("dpo", "preference_set", f"M_{iteration}^D = M_{iteration + 1}"),
    ):
        manifest = store.checkpoint(f"{stage}_checkpoint", key)
        parent = manifest.parent_digest or ""
        name = tracer.models.get(parent, "")
        stages.append(
            Trained(
                stage,
                model,
                f"{name} {parent}".strip() or NONE,
                manifest.data.get(data, ""),
                tracer.rows_of(data, iteration),
                manifest.digest,
            )
        )
    place = policy.asset if iteration == 0 else f"{policy.asset}[{policy.partition}]"
    return Round(iteration, f"M_{iteration} = {place}", tuple(stages))


def _rows(samples: Samples) -> list[str]:
    return [*(row.row_id for row in samples.sft), *(row.row_id for row in samples.pairs)]

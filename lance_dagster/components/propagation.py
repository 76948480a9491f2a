"""Change propagates: the automation condition of every asset, and the sensors that evaluate it.

``OutOfDate`` compares what a partition was made of with what is there now, so it does not react to events: a run that
consumed an update leaves nothing to request, and an artifact that came out with the same digest ends the wave. One step
of a wave is requested at a time: its result decides whether there is a next one.
"""

import asyncio
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import dagster as dg

from lance_dagster.components.automation import UNFINISHED
from lance_dagster.components.experiment import Experiment
from lance_dagster.components.staleness import Events, Place, Situation, Wiring

AC = dg.AutomationCondition
REPORT = "evolution_report"


@dataclass(frozen=True)
class _Tick:
    """What was read in one tick, by the condition that read it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    situations: dict[int, Situation] = field(default_factory=dict)


_TICKS: WeakKeyDictionary[Any, _Tick] = WeakKeyDictionary()  # by Dagster's view of the assets, which lives for a tick


class OutOfDate(dg.AutomationCondition[dg.AssetKey]):
    """True for partitions that exist, whose inputs or settings moved, and above which all is current and at rest.

    A partition is requested once for what it would start from: if that run fails or is cancelled, nothing is requested
    again until an input or a setting changes, or somebody runs it. Artifacts behind a failed blocking check are not
    requested; what a run made counts when the run has ended, its checks included.
    """

    def __init__(self, wiring: Wiring, due: Callable[[Situation, dg.AssetKey], list[Place]] = Situation.ready) -> None:
        self._wiring = wiring
        self._due = due
        self._gates: dg.AutomationCondition[Any] = ~AC.any_deps_match(
            AC.any_checks_match(AC.check_failed(), blocking_only=True)
        )

    @property
    def name(self) -> str:
        return "out_of_date"

    @property
    def description(self) -> str:
        return "Inputs or settings moved since it was made, and everything above it is settled"

    @property
    def children(self) -> Sequence[dg.AutomationCondition[Any]]:
        return [self._gates]

    async def evaluate(  # type: ignore[override]
        self, context: dg.AutomationContext[dg.AssetKey]
    ) -> dg.AutomationResult[dg.AssetKey]:
        """Dagster evaluates coroutines as well as plain functions."""
        situation = await self._situation(context)
        tried: dict[str, str] = json.loads(context.cursor or "{}")
        wanted = {
            _label(place): situation.fingerprint(place)
            for place in self._due(situation, context.key)
            if tried.get(_label(place)) != situation.fingerprint(place)
        }
        candidates = context.candidate_subset
        if candidates.is_partitioned:
            candidates = candidates.compute_intersection_with_partition_keys(frozenset(wanted))
        elif not wanted:
            candidates = context.get_empty_subset()
        asked = context.for_child_condition(self._gates, child_indices=[0], candidate_subset=candidates)
        # Reading the checks costs more than all the rest, and mostly nothing is due.
        gates = dg.AutomationResult(asked, candidates) if candidates.is_empty else await asked.evaluate_async()
        passed = gates.true_subset
        if passed.is_partitioned:
            requested = passed.expensively_compute_partition_keys()
        else:
            requested = frozenset() if passed.is_empty else frozenset(wanted)
        tried |= {label: wanted[label] for label in requested}
        return dg.AutomationResult(context, passed, cursor=json.dumps(tried), child_results=[gates])

    async def _situation(self, context: dg.AutomationContext[dg.AssetKey]) -> Situation:
        """The experiment at this tick; read once for all of its assets, of which Dagster evaluates several at once."""
        tick = _TICKS.setdefault(context.asset_graph_view, _Tick())
        async with tick.lock:  # a task kept here would keep the view alive
            if id(self) not in tick.situations:
                tick.situations[id(self)] = await self._read(context.asset_graph_view)
        return tick.situations[id(self)]

    async def _read(self, view: Any) -> Situation:
        making: set[Place] = set()
        for asset in self._wiring.parents:
            if asset in self._wiring.rejoined:
                continue
            everything = view.get_full_subset(key=asset)
            for subset in (
                await view.compute_run_in_progress_subset(key=asset, from_subset=everything),
                await view.compute_backfill_in_progress_subset(key=asset, from_subset=everything),
            ):
                if subset.is_partitioned:
                    making |= {(asset, key) for key in subset.expensively_compute_partition_keys()}
                elif not subset.is_empty:
                    making.add((asset, None))
        unfinished = view.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        return Situation(
            Events(view.instance, self._wiring), frozenset(making), frozenset(run.run_id for run in unfinished)
        )


def _label(place: Place) -> str:
    return place[1] or ""


def propagating(
    assets: Sequence[dg.AssetsDefinition | dg.SourceAsset], wiring: Wiring, report: dg.AssetKey
) -> list[dg.AssetsDefinition | dg.SourceAsset]:
    """The same assets, each with the condition under which it is made again."""
    change, news = OutOfDate(wiring), OutOfDate(wiring, Situation.report_due)

    def with_condition(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec.replace_attributes(automation_condition=news if spec.key == report else change)

    return [asset if isinstance(asset, dg.SourceAsset) else asset.map_asset_specs(with_condition) for asset in assets]


def propagation_sensors(experiment: Experiment) -> list[dg.AutomationConditionSensorDefinition]:
    """``<experiment>_changes`` and ``<experiment>_report``, both stopped until somebody starts them."""
    report = dg.AssetSelection.assets(experiment.key(REPORT))
    everything = dg.AssetSelection.groups(experiment.name)
    described = {
        "changes": (
            everything - report,
            "Runs again what is out of date, one step at a time, in this iteration and through promoted_checkpoint in "
            "the next ones. Where an artifact comes out as it was, the wave ends. Nothing is made for the first time.",
        ),
        "report": (report, "Writes evolution_report again when an iteration was evaluated."),
    }
    with warnings.catch_warnings():
        # Beta in Dagster 1.13, and chosen knowingly: conditions of one's own are evaluated in the code server only.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return [_sensor(experiment, name, *described[name]) for name in described]


def _sensor(
    experiment: Experiment, name: str, target: dg.AssetSelection, description: str
) -> dg.AutomationConditionSensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        f"{experiment.name}_{name}",
        target=target,
        description=description,
        run_tags={"lance/experiment": experiment.name, "lance/sensor": name},
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=experiment.settings.automation.interval_seconds,
        emit_backfills=False,
        use_user_code_server=True,
    )

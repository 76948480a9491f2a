"""How long one look of the sensors `<experiment>_changes` takes over 8 experiments with 20 complete iterations each.

The instance is SQLite on disk with one event per artifact; nothing is out of date, as a tick usually finds it. The
first tick reads every event, later ones only what is new. Prints both; the goal for a tick is 2 s for all experiments.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import dagster as dg
import yaml

from lance_dagster.components.experiment import Experiment
from lance_dagster.components.self_evolution import experiment_definitions
from lance_dagster.components.staleness import Place, Wiring
from lance_dagster.settings import parse_settings

EXPERIMENTS, ITERATIONS, TICKS = 8, 20, 5
MINI = Path(__file__).parents[1] / "lance_dagster/defs/mini/defs.yaml"


def experiments(root: Path) -> list[Experiment]:
    settings = yaml.safe_load(MINI.read_text())["attributes"]["settings"] | {"iterations": ITERATIONS}
    return [Experiment(f"mini_{number}", parse_settings(settings), root) for number in range(EXPERIMENTS)]


def in_order(wiring: Wiring) -> list[Place]:
    """All partitions, each after those that it is made of."""
    done: dict[Place, None] = {}

    def visit(place: Place) -> None:
        if place not in done:
            reporter = wiring.rejoined.get(place[0])
            for each in [(reporter, place[1])] if reporter else wiring.inputs(place):
                visit(each)
            done[place] = None

    for key in range(ITERATIONS):
        for asset, keys in wiring.partitions.items():
            visit((asset, None if keys is None else keys[key]))
    return list(done)


def fill(instance: dg.DagsterInstance, wiring: Wiring) -> int:
    """Report every partition as made once, of the inputs that were there; returns the number of events."""
    newest: dict[dg.AssetKey, int] = {}
    for place in in_order(wiring):
        asset, partition = place
        observed = asset in wiring.rejoined
        tags = {"dagster/data_version": f"content of {partition}"}
        if not observed:
            tags["dagster/code_version"] = str(wiring.code_versions[asset])
            for parent in wiring.parents[asset]:
                tags[f"dagster/input_event_pointer/{parent.to_user_string()}"] = str(newest.get(parent, "NULL"))
        kind = dg.AssetObservation if observed else dg.AssetMaterialization
        instance.report_runless_asset_event(kind(asset, partition=partition, tags=tags))
        fetch = instance.fetch_observations if observed else instance.fetch_materializations
        newest[asset] = fetch(asset, limit=1).records[0].storage_id
    return len(in_order(wiring))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = experiments(Path(folder))
        parts = [experiment_definitions(experiment) for experiment in found]
        definitions = dg.Definitions.merge(*parts)
        instance = dg.DagsterInstance.local_temp(folder)
        events = 0
        for experiment, part in zip(found, parts, strict=True):
            rejoined = {experiment.key("promoted_checkpoint"): experiment.key("dpo_checkpoint")}
            events += fill(instance, Wiring.of(part.assets or (), rejoined))  # type: ignore[arg-type]
        cursors: dict[str, str | None] = {}
        ticks = []
        for _ in range(TICKS + 1):
            requested = 0
            started = time.perf_counter()
            for experiment in found:
                name = f"{experiment.name}_changes"
                context = dg.build_sensor_context(instance, cursor=cursors.get(name), definitions=definitions)
                data = definitions.resolve_sensor_def(name).evaluate_tick(context)
                cursors[name] = data.cursor
                requested += len(data.run_requests or [])
            ticks.append(time.perf_counter() - started)
            if requested:
                raise SystemExit(f"{requested} runs were requested although nothing changed")
    first, later = ticks[0], ticks[1:]
    print(f"first tick {first:.2f} s, later {', '.join(f'{tick:.2f}' for tick in later)} s over {events} events")
    print(
        json.dumps(
            {
                "benchmark": "automation_tick",
                "experiments": EXPERIMENTS,
                "iterations": ITERATIONS,
                "events": events,
                "first_tick_seconds": round(first, 3),
                "tick_seconds": round(statistics.median(later), 3),
                "goal_seconds": 2.0,
            }
        )
    )


if __name__ == "__main__":
    main()

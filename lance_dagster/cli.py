"""The command line: `lance-dagster`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lance_dagster.errors import LanceError, SettingsError

if TYPE_CHECKING:
    import dagster as dg

    from lance_dagster.components.experiment import Experiment


class _Commands(click.Group):
    """Shows the project's own errors as one message instead of a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LanceError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lance-dagster")
def main() -> None:
    """Self-evolving post-training as Dagster assets (LANCE, arXiv 2412.15151)."""


@main.command()
@click.option("--experiment", default="mini", show_default=True, help="A folder name under lance_dagster/defs/.")
@click.option(
    "--iterations", default=3, show_default=True, type=click.IntRange(1, 99), help="How many to run, from 000."
)
@click.option("--fresh", is_flag=True, help="Forget cached generations of this experiment first.")
def demo(experiment: str, iterations: int, fresh: bool) -> None:
    """Run whole iterations one after another and print the scores.

    Everything goes through the Dagster instance of this folder, so `make ui` shows these runs afterwards.
    """
    started = time.monotonic()
    instance, found, definitions = _instance(), _experiment(experiment), _definitions()
    if iterations > found.settings.iterations:
        raise click.BadParameter(f"{experiment} has {found.settings.iterations} iterations", param_hint="--iterations")
    _refuse_while_in_progress(instance, experiment)
    if fresh and found.store.cache.exists():
        found.store.cache.fs.rm(found.store.cache.path, recursive=True)
    _run(instance, definitions, f"{experiment}_setup")
    for iteration in range(iterations):
        _run(instance, definitions, f"{experiment}_one_iteration", f"{iteration:03d}")
    _run(instance, definitions, f"{experiment}_report")
    click.echo(f"\n{_table(found)}")
    click.echo(f"\n{iterations} iterations in {time.monotonic() - started:.0f} s.")
    click.echo(f"Report:   {found.store.folder / 'report.html'}")
    click.echo(f"Figures:  {found.store.folder / 'report.json'}")
    click.echo("Web UI:   make ui")


@main.command()
@click.argument("experiment")
@click.option("--delete", is_flag=True, help="Delete them; without this, only say what that would free.")
def clean(experiment: str, delete: bool) -> None:
    """Weights of EXPERIMENT that later runs replaced: say how much they take, or delete them.

    A folder goes if no manifest in the store names it. Nothing is deleted while the experiment is in progress.
    """
    from lance_dagster.storage.superseded import remove, superseded

    found = _experiment(experiment)
    if delete:
        _refuse_while_in_progress(_instance(), experiment)
    folders = superseded(found.store)
    for each in folders:
        click.echo(f"{each.size / 1e6:10.1f} MB  {each.folder}")
        if delete:
            remove(each)
    total = sum(each.size for each in folders) / 1e6
    done = "freed" if delete else "can be freed: `lance-dagster clean --delete`"
    click.echo(f"{total:10.1f} MB in {len(folders)} folders {done}" if folders else "nothing is superseded")


@main.command()
@click.argument("experiment", default="mini")
def report(experiment: str) -> None:
    """Print the score table of EXPERIMENT from what is in its store."""
    click.echo(_table(_experiment(experiment)))


@main.command()
@click.argument("experiment")
@click.argument("row_id")
def trace(experiment: str, row_id: str) -> None:
    """Follow a row of EXPERIMENT back to its seed and forward to the checkpoints that were trained on it.

    ROW_ID, or its beginning, is that of a preference pair, an SFT row, a generated row or a seed: a column of the
    tables; the lineage page of the report and the previews in the web UI show some.
    """
    from lance_dagster.report.render_lineage import trace_to_text
    from lance_dagster.report.trace import Tracer

    found = _experiment(experiment)
    click.echo(trace_to_text(Tracer(found.store, found.settings.iterations).trace(row_id)))


def _numbers(least: float, most: float) -> Callable[[click.Context, click.Parameter, str | None], list[float] | None]:
    """Reads numbers with commas between them."""

    def read(_: click.Context, __: click.Parameter, value: str | None) -> list[float] | None:
        if value is None:
            return None
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is not a list of numbers such as 0.7,0.8") from error
        for number in numbers:
            if not least <= number <= most:
                raise click.BadParameter(f"{number:g} is not between {least:g} and {most:g}")
        return numbers

    return read


@main.command()
@click.argument("experiment")
@click.argument("iteration", type=click.IntRange(0, 98))
@click.option("--rouge", callback=_numbers(0.01, 1), help="ROUGE-L thresholds, such as 0.6,0.7,0.8.")
@click.option("--accept", callback=_numbers(0, 10), help="Acceptance scores, such as 7,8,9.")
def whatif(experiment: str, iteration: int, rouge: list[float] | None, accept: list[float] | None) -> None:
    """Print what other thresholds would have kept of ITERATION, from its ledger and without a model call.

    Without an option the threshold of the settings is taken; a star marks the line of the settings.
    """
    from lance_dagster.construction.whatif import as_text, what_if
    from lance_dagster.storage.experiment_store import iteration_key
    from lance_dagster.storage.tables import read_table

    found = _experiment(experiment)
    construction, store, key = found.settings.construction, found.store, iteration_key(iteration)
    everything = construction.filters.rouge_scope == "all" and iteration > 0
    outcomes = what_if(
        read_table(store.table("candidate_ledger", key)),
        read_table(store.table("reviewed_seed", key)),
        construction,
        rouge or [construction.filters.rouge_threshold],
        accept or [construction.accept_above],
        read_table(store.table("rouge_index", iteration_key(iteration - 1))) if everything else None,
    )
    click.echo(as_text(outcomes, construction))


@main.command()
@click.argument("experiment", default="mini")
@click.option("--iteration", type=click.IntRange(0, 98), help="The first one that is not complete if left out.")
@click.option("--preview", default=32, show_default=True, type=click.IntRange(1), help="Seed rows to try it on.")
def plan(experiment: str, iteration: int | None, preview: int) -> None:
    """Predict calls, tokens, time and cost of the coming iteration of EXPERIMENT.

    A few seeds go through the construction of that iteration; their texts stay in the cache for the real run.
    """
    from lance_dagster.components.planning import plan_text

    click.echo(plan_text(_experiment(experiment), iteration, preview, lambda line: click.echo(line, err=True)))


@main.command()
@click.argument("experiment", default="mini")
@click.option("--keep-gb", type=click.FloatRange(min=0.0), help="Remove the least recently used until the rest fits.")
@click.option("--unused-days", type=click.FloatRange(min=0.0), help="Remove what was not used for so many days.")
def cache(experiment: str, keep_gb: float | None, unused_days: float | None) -> None:
    """Show the cached completions of EXPERIMENT by model and kind, and prune them.

    Removing them loses no result: a stage that is run again generates what is missing.
    """
    from lance_dagster.engines.completion_cache import CompletionCache
    from lance_dagster.report.cache_table import cache_table

    store = _experiment(experiment).store
    completions = CompletionCache(store.cache, lambda line: click.echo(line, err=True))
    if keep_gb is not None or unused_days is not None:
        most = None if keep_gb is None else int(keep_gb * (1 << 30))
        removed = completions.prune(most, unused_days)
        size = sum(shard.size for shard in removed) / (1 << 20)
        click.echo(f"removed {sum(shard.rows for shard in removed):,} completions, {size:.1f} MiB")
    click.echo(cache_table(completions.shards(), store))


@main.command()
@click.argument("experiment", default="mini_discovery")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 50), help="Random seeds, from 0.")
@click.option("--iterations", default=3, show_default=True, type=click.IntRange(1, 99), help="Iterations of each run.")
@click.option("--only", multiple=True, help="A control, or `lance` for the experiment itself; all if not given.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Runs beside each other.")
@click.option("--task", help="Score on this task instead, for example a development set to choose settings on.")
@click.option("--fresh", is_flag=True, help="Forget what was run before.")
def study(
    experiment: str, seeds: int, iterations: int, only: tuple[str, ...], workers: int, task: str | None, fresh: bool
) -> None:
    """Run EXPERIMENT and its controls over several seeds and write one table of paired comparisons.

    Started again, it goes on where it was stopped. The controls are the YAML files in lance_dagster/study/controls.
    """
    import shutil

    from lance_dagster.settings import merged
    from lance_dagster.study.controls import variant_named, variants
    from lance_dagster.study.study import Study, run_study
    from lance_dagster.study.tables import write_study

    started = time.monotonic()
    found = _experiment(experiment)
    chosen = [variant_named(name) for name in only] or variants()
    plain = found.settings.model_dump(mode="json", exclude_unset=True)
    name = experiment if task is None else f"{experiment}_{task}"
    if task is not None:
        plain = merged(plain, {"evaluation": {"tasks": [task]}})
    plan = Study(name, plain, found.root, chosen, range(seeds), iterations)
    folder = plan.folder
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    outcomes = run_study(plan, workers, lambda text: click.echo(text, err=True))
    files = write_study(folder, outcomes)
    click.echo(files.markdown.read_text(encoding="utf-8"))
    click.echo(f"{len(outcomes)} runs in {time.monotonic() - started:.0f} s. Written to {files.markdown}, {files.json}")


@main.group()
def mini() -> None:
    """The embedded world: rebuild its base model or its data files."""


@mini.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--world",
    type=click.Choice(["repair", "discovery"]),
    default="repair",
    show_default=True,
    help="The base model of the experiment `mini`, or of `mini_discovery`.",
)
@click.option(
    "--steps", type=click.IntRange(1), help="Fewer steps for a quick look; the shipped weights use the default."
)
def pretrain(out: Path, world: Literal["repair", "discovery"], steps: int | None) -> None:
    """Build tokenizer and weights of a mini base model from nothing into OUT (half an hour or more on two cores)."""
    from dataclasses import replace

    from lance_dagster.mini.pretraining import RECIPES, pretrain

    recipe = RECIPES[world] if steps is None else replace(RECIPES[world], steps=steps)
    pretrain(out, recipe, log=click.echo)


@mini.command()
@click.argument("experiment", default="mini")
def measure(experiment: str) -> None:
    """Measure the base model of EXPERIMENT against its world's oracle: accuracy, pass@8, reviewer AUC, as JSON."""
    import json

    from lance_dagster.mini.measure import measure_model
    from lance_dagster.mini.pretraining import world_of_recipe
    from lance_dagster.storage.experiment_store import resolve_path

    found = _experiment(experiment)
    folder = Path(resolve_path(found.settings.model.path, found.root))
    if not (folder / "pretraining.json").is_file():
        raise click.UsageError(f"the base model of {experiment}, {folder}, is not one of a mini world")
    world = world_of_recipe(folder / "pretraining.json")
    click.echo(json.dumps(measure_model(folder, "base", found.settings, found.prompts, world), indent=1))


@mini.command()
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=Path("data/mini"), show_default=True)
def data(data: Path) -> None:
    """Write the shipped seed files and evaluation sets again, byte for byte."""
    from lance_dagster.mini.datasets import write_datasets

    for path in write_datasets(data, Path(__file__).parent / "mini"):
        click.echo(path)


def _instance() -> dg.DagsterInstance:
    """The Dagster instance of this folder, or of DAGSTER_HOME."""
    import dagster as dg

    if os.environ.get("DAGSTER_HOME"):
        return dg.DagsterInstance.get()
    if not Path("dagster.yaml").is_file():
        raise click.UsageError(
            "there is no dagster.yaml here. Run this from the project's folder, or set DAGSTER_HOME to one that has it."
        )
    return dg.DagsterInstance.from_config(str(Path.cwd()))


def _refuse_while_in_progress(instance: dg.DagsterInstance, experiment: str) -> None:
    from lance_dagster.components.in_progress import in_progress

    if running := in_progress(instance, experiment):
        raise click.ClickException(
            f"{experiment} is in progress on this Dagster instance: {', '.join(running)}. Wait until it has ended, or "
            "terminate it in the web UI (`make ui`), which also forgets runs whose process is gone."
        )


def _experiment(name: str) -> Experiment:
    """One shipped experiment by the name of its folder."""
    import dagster as dg

    from lance_dagster.components.experiment import Experiment
    from lance_dagster.components.self_evolution import SelfEvolution

    package = Path(__file__).parent
    known = sorted(path.parent.name for path in (package / "defs").glob("*/defs.yaml"))
    if name not in known:
        raise click.UsageError(f"no experiment {name!r}; there are {', '.join(known)}")
    with _loading():
        component = dg.ComponentTree.for_project(package).load_component(Path(name), expected_type=SelfEvolution)
    return Experiment(component.experiment, component.settings, package.parent)


def _definitions() -> dg.Definitions:
    """What Dagster loads: all experiments, so a wrong file of any of them is an error."""
    from lance_dagster.definitions import defs

    with _loading():
        return defs()


@contextmanager
def _loading() -> Iterator[None]:
    """Dagster wraps what is wrong with a file under defs/ several times; the cause is what a user can mend."""
    try:
        yield
    except Exception as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        own = next((cause for cause in causes if isinstance(cause, LanceError)), None)
        if own is not None:
            raise own from error
        where = "" if causes[-1] is error else str(error).partition("\n")[0]
        raise SettingsError(
            f"the files under defs/ cannot be loaded: {where}\n{type(causes[-1]).__name__}: {causes[-1]}\n"
            "`dg check yaml` and `dg check defs` say more."
        ) from error


def _table(experiment: Experiment) -> str:
    from lance_dagster.report.gather import gather
    from lance_dagster.report.render import to_text

    return to_text(gather(experiment.store, experiment.settings, experiment.prompts))


def _run(instance: dg.DagsterInstance, definitions: dg.Definitions, job: str, partition: str | None = None) -> None:
    """Run a job in this process; on failure say which step failed and why, and stop."""
    import dagster as dg

    from lance_dagster.components.in_progress import process_tag

    started = time.monotonic()
    label = job if partition is None else f"{job} {partition}"
    click.echo(f"== {label}", err=True)
    result = definitions.resolve_job_def(job).execute_in_process(
        instance=instance, partition_key=partition, raise_on_error=False, tags=process_tag()
    )
    if not result.success:
        for event in result.all_events:
            if event.is_step_failure:
                data = event.step_failure_data
                if data.error and data.error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
                    click.echo(f"{label} was interrupted; the same command goes on where it stopped.", err=True)
                    sys.exit(130)
                reason = data.user_failure_data.description if data.user_failure_data else None
                click.echo(f"{event.step_key}: {reason or data.error_display_string}", err=True)
        click.echo(f"{label} failed; nothing complete is lost. `make ui` shows run {result.run_id}.", err=True)
        sys.exit(1)
    click.echo(f"== {label} done in {time.monotonic() - started:.0f} s", err=True)


if __name__ == "__main__":
    main()

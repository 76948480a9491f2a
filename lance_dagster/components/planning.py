"""`lance-dagster plan`: the coming iteration of an experiment in calls, tokens, time and money."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lance_dagster.components.experiment import Experiment
from lance_dagster.construction.plan import Expected, expected_iteration
from lance_dagster.construction.policy import build_policy
from lance_dagster.engines.accounting import Spent, Usage
from lance_dagster.errors import ArtifactError
from lance_dagster.report.costs import spent_on
from lance_dagster.settings import PriceSettings
from lance_dagster.storage.experiment_store import iteration_key
from lance_dagster.storage.tables import read_table


def plan_text(experiment: Experiment, iteration: int | None, preview: int, log: Callable[[str], None]) -> str:
    """The plan as a table of text. Raises ArtifactError where there is no iteration to plan or its start is missing."""
    chosen = coming_iteration(experiment) if iteration is None else iteration
    policy = build_policy(experiment.store, chosen)
    seeds = policy.seed(experiment.store, experiment.settings, read_table(experiment.store.table("seed_instructions")))
    earlier = sum((spent_on(experiment.store, number) for number in range(chosen)), Spent())
    spending = experiment.store.spending("plan", iteration_key(chosen))
    with experiment.construction(policy, log, spending) as step:
        stages = expected_iteration(step, experiment.method, seeds, preview)
        rate, source = tokens_per_second(earlier, step.runner.usage)
    head = f"{experiment.name}, iteration {iteration_key(chosen)}: {len(seeds)} seed rows, previewed on "
    return f"{head}{min(preview, len(seeds))}; {source}\n\n{table(stages, rate, experiment.settings.engine.price)}"


def coming_iteration(experiment: Experiment) -> int:
    """The first iteration that has no DPO checkpoint."""
    for number in range(experiment.settings.iterations):
        if not experiment.store.manifest("dpo_checkpoint", iteration_key(number)).exists():
            return number
    raise ArtifactError(
        f"all {experiment.settings.iterations} iterations of {experiment.name} are complete; raise `iterations` in its "
        "defs.yaml, or name one with --iteration"
    )


def tokens_per_second(earlier: Spent, preview: Usage) -> tuple[float, str]:
    """Generated tokens per second and where the figure is from: whole iterations say more than a preview."""
    if earlier.completion_tokens and earlier.seconds:
        return earlier.completion_tokens / earlier.seconds, "time from the iterations before"
    if preview.completion_tokens and preview.seconds:
        return preview.completion_tokens / preview.seconds, "time from the preview, whose batches are small"
    return 0.0, "no time is known, because the preview was in the cache"


def table(stages: Sequence[Expected], rate: float, price: PriceSettings) -> str:
    """One line per stage and their sum; a dash for a time that is not known."""
    total = Expected(
        "all",
        sum(stage.calls for stage in stages),
        sum(stage.prompt_tokens for stage in stages),
        sum(stage.completion_tokens for stage in stages),
    )
    lines = [f"{'stage':<24}{'calls':>10}{'tokens in':>14}{'tokens out':>14}{'seconds':>10}{'cost':>16}"]
    for stage in (*stages, total):
        seconds = stage.completion_tokens / rate if rate else 0.0
        usage = Usage(prompt_tokens=stage.prompt_tokens, completion_tokens=stage.completion_tokens, seconds=seconds)
        cost = f"{usage.cost(price):.4g} {price.currency}"
        tokens = f"{stage.calls:>10,}{stage.prompt_tokens:>14,}{stage.completion_tokens:>14,}"
        lines.append(f"{stage.stage:<24}{tokens}{f'{seconds:,.0f}' if rate else '-':>10}{cost:>16}")
    return "\n".join(lines)

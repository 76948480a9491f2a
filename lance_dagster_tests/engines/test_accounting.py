"""What generation costs, and the budget that it keeps to."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from upath import UPath

from lance_dagster.engines.accounting import SpendingLog, Spent, Usage
from lance_dagster.engines.batch import BatchRunner
from lance_dagster.engines.engine import Completion, GenerationRequest
from lance_dagster.engines.scripted_engine import ScriptedEngine
from lance_dagster.errors import GenerationError
from lance_dagster.records import CANDIDATE_LEDGER
from lance_dagster.report.costs import iteration_cost
from lance_dagster.settings import PriceSettings, SamplingSettings
from lance_dagster.storage.experiment_store import ExperimentStore
from lance_dagster_tests.report.tables import candidate

PRICE = PriceSettings(input_per_million=2.0, output_per_million=10.0, currency="EUR")


def requests(count: int, max_new_tokens: int = 100) -> list[GenerationRequest]:
    sampling = SamplingSettings(max_new_tokens=max_new_tokens)
    return [GenerationRequest(({"role": "user", "content": f"Say {i:04d}"},), sampling, i) for i in range(count)]


def runner(folder: Path, max_cost: float | None = None, shard_rows: int = 16, new: int = 60) -> BatchRunner:
    """Answers of 9 prompt tokens and ``new`` new ones."""
    engine = ScriptedEngine(lambda request: Completion(f"text {request.seed}", "stop", 9, new))
    return BatchRunner(
        lambda: engine,
        "scripted",
        "scripted",
        UPath(folder / "completions"),
        shard_rows,
        lambda line: None,
        price=PRICE,
        max_cost=max_cost,
        record=SpendingLog(UPath(folder / "spending.json"), PRICE),
    )


def test_cost_is_tokens_at_their_price_and_hours_at_theirs() -> None:
    usage = Usage(prompt_tokens=500_000, completion_tokens=200_000, seconds=5400.0, load_seconds=1800.0, gpus=4)
    assert usage.cost(PRICE) == pytest.approx(1.0 + 2.0)
    assert usage.cost(PriceSettings(per_hour=3.0)) == pytest.approx(6.0)
    metadata = usage.metadata(PRICE)
    assert (metadata["generation/gpu_seconds"], metadata["generation/wall_seconds"]) == (28_800.0, 7200.0)
    assert metadata["generation/cost"] == 3.0


@pytest.mark.parametrize("budget", [0.01, 0.02, 0.055])
def test_a_stage_stops_before_it_exceeds_its_budget_and_keeps_what_it_has(tmp_path: Path, budget: float) -> None:
    stage = runner(tmp_path, budget)
    with pytest.raises(GenerationError, match=r"has spent .* EUR, and the next request .* engine\.max_stage_cost"):
        stage.generate(requests(200), "review")
    worst = stage.usage.bound(PRICE, requests(1))
    assert budget - worst < stage.usage.cost(PRICE) <= budget, "as far as it goes, and no further"
    answered = stage.usage.generated_requests
    richer = runner(tmp_path, 1.0)
    assert len(richer.generate(requests(200), "review")) == 200
    assert richer.usage.generated_requests == 200 - answered


def test_an_answer_that_uses_its_whole_limit_does_not_break_the_budget(tmp_path: Path) -> None:
    stage = runner(tmp_path, 0.0305, new=100)
    with pytest.raises(GenerationError):
        stage.generate(requests(200), "review")
    assert stage.usage.cost(PRICE) <= 0.0305


def test_a_budget_that_is_enough_changes_nothing(tmp_path: Path) -> None:
    assert len(runner(tmp_path, 1.0).generate(requests(50), "review")) == 50


def test_spending_adds_up_over_runs_and_counts_those_that_failed(tmp_path: Path) -> None:
    with pytest.raises(GenerationError):
        runner(tmp_path, 0.02).generate(requests(100), "review")
    first = Spent.read(UPath(tmp_path / "spending.json"))
    assert 0 < first.requests < 100
    runner(tmp_path).generate(requests(100), "review")
    both = Spent.read(UPath(tmp_path / "spending.json"))
    assert (both.requests, both.prompt_tokens, both.completion_tokens) == (100, 900, 6000)
    assert both.cost == pytest.approx(100 * (9 * 2 + 60 * 10) / 1e6)
    runner(tmp_path).generate(requests(100), "review")
    assert Spent.read(UPath(tmp_path / "spending.json")) == both, "cached texts cost nothing"


def test_the_report_has_the_price_of_a_kept_row(tmp_path: Path) -> None:
    store = ExperimentStore(UPath(tmp_path), "tiny")
    rows = [candidate("response", None, number=i) for i in range(3)] + [candidate("response", "similar", number=9)]
    ledger = pa.Table.from_pylist([*rows, candidate("instruction", None)], schema=CANDIDATE_LEDGER)
    for asset in ("reviewed_seed", "candidate_ledger"):
        log = SpendingLog(store.spending(asset, "002"), PRICE)
        log(Usage(generated_requests=5, prompt_tokens=1000, completion_tokens=300, seconds=2.0))
    cost = iteration_cost(store, 2, ledger, "EUR")
    assert (cost.requests, cost.prompt_tokens, cost.seconds, cost.kept_rows) == (10, 2000, 4.0, 3)
    assert cost.cost == pytest.approx(0.01) and cost.per_kept_row == pytest.approx(0.01 / 3)
    assert iteration_cost(store, 2, ledger.slice(0, 0), "EUR").per_kept_row is None

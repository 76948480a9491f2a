"""The loop with other engines than the embedded default, by one line of settings; and its plan."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lance_dagster import cli
from lance_dagster_tests.tiny import Tiny, tiny_experiment

GENERATED = ["reviewed_seed", "instruction_candidates", "preference_candidates", "candidate_ledger"]


def copy_of(evolved: Tiny, root: Path, **changes: Any) -> Tiny:
    """A tiny experiment with the evolved one's models and other settings, without its texts."""
    tiny = tiny_experiment(root, **changes)
    shutil.copytree(str(evolved.experiment.store.folder), str(tiny.experiment.store.folder))
    shutil.rmtree(str(tiny.experiment.store.cache))
    shutil.rmtree(str(tiny.experiment.store.folder / "spending"))
    assert tiny.run("setup", select=["seed_instructions", "seed_reviews"]).success
    return tiny


def with_engine(evolved: Tiny, root: Path, kind: str) -> Tiny:
    if kind != "ray":
        pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")
    engine = {"kind": kind, "vllm": {"cache_gb": 0.25}, "ray": {"workers": 2, "cpus_per_worker": 0.5}}
    return copy_of(evolved, root, engine=engine, model={"device": "auto"})


def assert_same_reviews(tiny: Tiny, evolved: Tiny) -> None:
    ours, theirs = (t.table("reviewed_seed", "000").to_pylist() for t in (tiny, evolved))
    same = sum(a["scores"] == b["scores"] for a, b in zip(ours, theirs, strict=True))
    assert same >= 0.95 * len(theirs), "reviews are greedy"


def test_a_seed_is_reviewed_alike_through_a_server(evolved: Tiny, tmp_path: Path) -> None:
    tiny = with_engine(evolved, tmp_path, "openai")
    assert tiny.run("one_iteration", "000", select=["reviewed_seed"]).success
    assert_same_reviews(tiny, evolved)


@pytest.mark.parametrize("kind", ["vllm", "ray"])
def test_an_iteration_is_constructed_as_well_by_another_engine(evolved: Tiny, tmp_path: Path, kind: str) -> None:
    tiny = with_engine(evolved, tmp_path, kind)
    assert tiny.run("one_iteration", "000", select=GENERATED).success
    assert_same_reviews(tiny, evolved)
    ours, theirs = (t.table("candidate_ledger", "000").to_pylist() for t in (tiny, evolved))
    assert len(ours) == pytest.approx(len(theirs), rel=0.1)
    assert sum(row["kept"] for row in ours) == pytest.approx(sum(row["kept"] for row in theirs), rel=0.5)
    assert {row["finish_reason"] for row in ours} <= {"stop", "length"}


def test_the_plan_of_a_complete_preview_is_what_the_iteration_took(
    evolved: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    price = {"input_per_million": 1.0, "output_per_million": 5.0, "currency": "EUR"}
    tiny = copy_of(evolved, tmp_path, engine={"price": price})
    shutil.rmtree(str(tiny.experiment.store.folder / "dpo_checkpoint"))
    monkeypatch.setattr(cli, "_experiment", lambda name: tiny.experiment)
    output = CliRunner().invoke(cli.main, ["plan", "tiny", "--preview", "1000"]).output
    assert "tiny, iteration 000: 60 seed rows, previewed on 60" in output
    planned = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in output.splitlines() if "EUR" in line}
    ledger = evolved.table("candidate_ledger", "000").to_pylist()
    by_kind = {kind: sum(row["kind"] == kind for row in ledger) for kind in ("instruction", "response")}
    assert planned["reviewed_seed"] == 60
    assert planned["instruction_candidates"] == sum(by_kind.values())
    assert planned["preference_candidates"] == len(ledger) - sum(by_kind.values())
    assert planned["candidate_ledger"] >= sum(bool(row["scores"]) for row in ledger), "filters are not counted on"
    assert planned["all"] == sum(count for name, count in planned.items() if name != "all")
    assert float(re.findall(r"([\d.e-]+) EUR", output)[-1]) > 0
    # Nothing of the preview is done twice.
    assert tiny.run("one_iteration", "000", select=["policy_model", "reviewed_seed"]).success
    again = CliRunner().invoke(cli.main, ["plan", "tiny", "--preview", "1000"]).output
    assert "the preview was in the cache" in again

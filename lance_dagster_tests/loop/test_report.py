"""The report shows figures of the checkpoints that are there, and says so where it has none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lance_dagster.errors import ArtifactError
from lance_dagster.report.gather import gather
from lance_dagster.report.summary import Summary
from lance_dagster_tests.loop.test_faults import copy_of
from lance_dagster_tests.tiny import Tiny


def report(tiny: Tiny) -> Summary:
    return gather(tiny.experiment.store, tiny.experiment.settings, tiny.experiment.prompts)


def replace_digest(tiny: Tiny, asset: str, partition: str = "current") -> None:
    """As if the checkpoint had been trained again and nothing after it."""
    path = Path(str(tiny.experiment.store.manifest(asset, partition)))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "trained_again"}))


def test_what_was_scored_and_what_is_there_agree_after_a_run(evolved: Tiny) -> None:
    summary = report(evolved)
    assert summary.out_of_date == ()
    assert len(summary.funnels) == 2


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_scores_of_an_older_checkpoint_are_not_shown(evolved: Tiny, tmp_path: Path, stage: str) -> None:
    tiny = copy_of(evolved, tmp_path)
    measured = tiny.manifest(f"{stage}_checkpoint", "001")["digest"]
    replace_digest(tiny, f"{stage}_checkpoint", "001")
    summary = report(tiny)
    assert {row.iteration for row in summary.scores} == {-1, 0}
    [warning] = summary.out_of_date
    assert warning.startswith("Iteration 001 is out of date and left out: ")
    assert f"eval_scores is of {measured}, but {stage}_checkpoint is trained_again" in warning
    assert "dg launch --job tiny_one_iteration --partition 001" in warning
    assert "After iteration 000" in summary.headline


def test_an_iteration_that_started_from_a_model_that_was_replaced_is_out_of_date(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    replace_digest(tiny, "dpo_checkpoint", "000")
    first, second = report(tiny).out_of_date
    assert "drift is of" in first and "Iteration 000" in first
    assert "Iteration 001" in second and "which dpo_checkpoint no longer is" in second


def test_an_iteration_without_its_checkpoint_is_out_of_date(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    shutil.rmtree(str(tiny.experiment.store.asset_folder("dpo_checkpoint")))
    assert ["dpo_checkpoint is missing" in warning for warning in report(tiny).out_of_date] == [True, True]


def test_baseline_scores_of_another_m0_are_refused(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    replace_digest(tiny, "initial_checkpoint")
    with pytest.raises(ArtifactError, match=r"initial_checkpoint is trained_again. Materialise baseline_scores again"):
        report(tiny)

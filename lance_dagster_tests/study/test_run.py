"""A study from end to end: real training, real scores; stopped and started again; a run that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lance_dagster.errors import StudyError
from lance_dagster.storage.experiment_store import ExperimentStore
from lance_dagster.study.controls import variant_named
from lance_dagster.study.outcome import outcome
from lance_dagster.study.run import StudyRun, execute
from lance_dagster.study.study import Study, run_study
from lance_dagster.study.tables import write_study
from lance_dagster_tests.tiny import tiny_settings


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """One iteration of a tiny experiment and of its replay control."""
    root = tmp_path_factory.mktemp("study")
    chosen = [variant_named("replay"), variant_named("lance")]  # replay needs lance, whatever the order
    study = Study("tiny", tiny_settings(root), root, chosen, [0], 1)
    write_study(study.folder, run_study(study, 1, lambda _: None))
    return study, root


def whole(study: Study, root: Path, **changes: Any) -> StudyRun:
    return StudyRun("tiny", {**study.settings, **changes}, root, "lance", 0, 1)


def lines_of(run: StudyRun) -> list[str]:
    said: list[str] = []
    execute(run, said.append)
    return said


def test_the_tables_hold_both_runs_with_the_oracles_view(finished: tuple[Study, Path]) -> None:
    study, _ = finished
    runs = {entry["variant"]: entry for entry in json.loads((study.folder / "study.json").read_text())}
    assert set(runs) == {"lance", "replay"}
    assert runs["lance"]["digests"]["M_0"] == runs["replay"]["digests"]["M_0"], "one seed number, one M_0"
    assert runs["lance"]["digests"]["M_1"] != runs["replay"]["digests"]["M_1"]
    assert set(runs["lance"]["against"]) == {"base", "M_0", "replay"}
    oracle = runs["lance"]["oracle"]
    assert 0.9 < oracle["base"]["answering"]["greedy"] <= 1.0
    assert oracle["iterations"][0]["precision"]["kept_rows"] > 0
    assert runs["replay"]["oracle"]["iterations"][0]["precision"]["kept_rows"] == 0
    assert "M_1 against replay" in (study.folder / "study.md").read_text()


def test_what_one_model_wrote_in_one_run_is_there_for_all_others(finished: tuple[Study, Path]) -> None:
    study, root = finished
    store = whole(study, root).build().store
    assert store.cache == study.folder / "completions"
    assert list(store.cache.glob("*/review/*.parquet"))
    assert not list(study.folder.glob("seed_*/*/completions"))


def test_replay_takes_as_many_steps_as_the_whole_experiment(finished: tuple[Study, Path]) -> None:
    study, root = finished
    store = whole(study, root).build().store
    replay = ExperimentStore(store.base, "replay")
    steps = sum(store.checkpoint(f"{stage}_checkpoint", "000").metrics["steps"] for stage in ("sft", "dpo"))
    assert replay.checkpoint("sft_checkpoint", "000").metrics["steps"] == steps


def test_a_finished_run_is_not_run_again(finished: tuple[Study, Path]) -> None:
    assert lines_of(whole(*finished)) == ["tiny lance seed 0: complete"]


def test_the_number_of_threads_is_not_part_of_a_run(finished: tuple[Study, Path]) -> None:
    study, root = finished
    assert lines_of(StudyRun("tiny", study.settings, root, "lance", 0, 1, threads=1)) == ["tiny lance seed 0: complete"]


def test_an_outcome_of_a_run_that_is_not_complete_says_what_is_missing(finished: tuple[Study, Path]) -> None:
    study, root = finished
    longer = StudyRun("tiny", study.settings, root, "lance", 0, 2)
    with pytest.raises(Exception, match=r"lance/sft_checkpoint\[001\]"):
        outcome(longer.build(), longer, "", lambda _: None)


def test_another_setting_runs_again_and_a_failure_names_run_step_and_reason(finished: tuple[Study, Path]) -> None:
    study, root = finished
    nothing = {"replay_seed": "none", "replay_reviews": False}
    changed = whole(
        study, root,
        construction={**study.settings["construction"], "accept_above": 10.0},
        training={**study.settings["training"], **nothing},
    )  # fmt: skip
    said: list[str] = []
    with pytest.raises(StudyError, match=r"^tiny lance seed 0, one_iteration 000: lance__\w+: .*"):
        execute(changed, said.append)
    assert said[-1] == "tiny lance seed 0: one_iteration 000"

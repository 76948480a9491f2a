"""The command line as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lance_dagster.cli import main
from lance_dagster.construction.ledger import funnel
from lance_dagster_tests.tiny import REPOSITORY, Tiny, tiny_experiment


def test_help_names_the_commands() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for command in ("demo", "report", "whatif", "mini"):
        assert command in text


def test_an_unknown_experiment_is_answered_with_those_there_are() -> None:
    result = CliRunner().invoke(main, ["report", "nope"])
    assert result.exit_code == 2
    assert "no experiment 'nope'" in result.output
    assert "mini" in result.output
    assert "qwen2_7b" in result.output


def test_the_demo_outside_the_project_says_where_to_run_it(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
    done = subprocess.run(
        [sys.executable, "-m", "lance_dagster.cli", "demo"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "dagster.yaml" in done.stderr
    assert "DAGSTER_HOME" in done.stderr


def test_more_iterations_than_the_experiment_has_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--iterations", "11"], env={"DAGSTER_HOME": str(tmp_path)})
    assert result.exit_code == 2
    assert "mini has 10 iterations" in result.output


def test_the_data_files_can_be_written_again(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["mini", "data", "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for name in ("seed_instructions_uneven.jsonl", "seed_instructions_clean.jsonl", "seed_reviews.jsonl"):
        assert (tmp_path / name).read_bytes() == (REPOSITORY / "data/mini" / name).read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--rouge", "0", "0 is not between 0.01 and 1"), ("--rouge", "0.6,1.1", "1.1"), ("--accept", "7;8", "0.7,0.8")],
)
def test_a_threshold_that_is_none_is_refused(option: str, value: str, message: str) -> None:
    result = CliRunner().invoke(main, ["whatif", "mini", "0", option, value])
    assert result.exit_code == 2
    assert message in result.output


def test_whatif_of_an_iteration_that_did_not_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lance_dagster import cli

    monkeypatch.setattr(cli, "_experiment", lambda name: tiny_experiment(tmp_path).experiment)
    result = CliRunner().invoke(main, ["whatif", "tiny", "1"])
    assert result.exit_code == 1
    assert "there is no table at" in result.output


def test_whatif_prints_a_line_per_setting_of_an_iteration_that_ran(
    evolved: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lance_dagster import cli

    monkeypatch.setattr(cli, "_experiment", lambda name: evolved.experiment)
    result = CliRunner().invoke(main, ["whatif", "tiny", "1", "--rouge", "0.6,0.9", "--accept", "7,8,9"])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert len(lines) == 1 + 2 * 3
    (own,) = [line for line in lines if line[0] == "*"]
    counts = funnel(evolved.table("candidate_ledger", "001"))
    assert own[1:3] == ["0.9", "8"]
    assert int(own[3]) == counts.get("instruction/kept", 0)
    assert int(own[5]) == counts.get("response/kept", 0)

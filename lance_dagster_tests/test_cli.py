"""The command line as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from lance_dagster.cli import main
from lance_dagster_tests.tiny import REPOSITORY


def test_help_names_the_commands() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for command in ("demo", "report", "mini"):
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

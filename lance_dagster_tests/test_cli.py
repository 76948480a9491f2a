"""The command line as a user calls it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner
from upath import UPath

from lance_dagster import cli
from lance_dagster.cli import main
from lance_dagster.construction.ledger import funnel
from lance_dagster.storage.checkpoints import commit_checkpoint
from lance_dagster_tests.storage.test_checkpoints import staged
from lance_dagster_tests.test_loading import WRONG, project_with
from lance_dagster_tests.tiny import REPOSITORY, Tiny, tiny_experiment


def test_help_names_the_commands() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for command in ("demo", "report", "whatif", "clean", "mini"):
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


def lance_dagster(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lance_dagster.cli", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project), "DAGSTER_HOME": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", ["demo --experiment", "report", "clean"])
def test_wrong_settings_are_one_message(tmp_path: Path, command: str) -> None:
    done = lance_dagster(project_with(tmp_path, WRONG), *command.split(), "mine")
    assert done.returncode == 1
    assert "construction.threshold: Input should be less than or equal to 10 (got 70.0)" in done.stderr
    assert "defs/mine/defs.yaml, experiment mine" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_settings_of_another_experiment_are_shown_before_the_demo_starts(tmp_path: Path) -> None:
    project = project_with(tmp_path, {})
    text = (project / "lance_dagster/defs/mine/defs.yaml").read_text()
    other = project / "lance_dagster/defs/other/defs.yaml"
    other.parent.mkdir()
    other.write_text(text.replace("experiment: mine", "experiment: other").replace("samples: 4", "samples: none"))
    done = lance_dagster(project, "demo", "--experiment", "mine")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "experiment other: wrong settings" in done.stderr and "== mine_setup" not in done.stderr
    other.write_text("type: [")
    done = lance_dagster(project, "demo", "--experiment", "mine")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "other/defs.yaml" in done.stderr and "dg check yaml" in done.stderr, done.stderr


def test_an_experiment_in_progress_is_neither_run_nor_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(REPOSITORY / "dagster.yaml", tmp_path / "dagster.yaml")
    monkeypatch.chdir(tmp_path)  # the paths in dagster.yaml are relative to where one is
    home = {"DAGSTER_HOME": str(tmp_path)}
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        started = dg.DagsterRunStatus.STARTED
        run = instance.add_run(dg.DagsterRun("mini_setup", status=started, tags={"lance/experiment": "mini"}))
    for command in (["demo"], ["clean", "mini", "--delete"]):
        result = CliRunner().invoke(main, command, env=home)
        assert result.exit_code == 1
        assert f"mini is in progress on this Dagster instance: run {run.run_id}" in result.output


def test_an_interrupted_run_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    @dg.asset
    def slow() -> None:
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
        time.sleep(30)

    definitions = dg.Definitions([slow], jobs=[dg.define_asset_job("mini_setup")])
    with pytest.raises(SystemExit) as ended, dg.DagsterInstance.ephemeral() as instance:
        cli._run(instance, definitions, "mini_setup")
    assert ended.value.code == 130
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1] == "mini_setup was interrupted; the same command goes on where it stopped."


def test_clean_says_what_it_would_free_and_deletes_only_if_told(tmp_path: Path) -> None:
    project = project_with(tmp_path, {})
    folder = UPath(project / "data/store/mine/sft_checkpoint")
    for name in ("old", "new"):
        commit_checkpoint(staged(tmp_path / name, name.encode() * 1_000_000), folder, "000", kind="sft")
    weights = sorted(path.name for path in (folder / "000").iterdir())
    said = lance_dagster(project, "clean", "mine")
    assert "3.0 MB in 1 folders can be freed" in said.stdout, said
    assert sorted(path.name for path in (folder / "000").iterdir()) == weights
    assert "freed" in lance_dagster(project, "clean", "mine", "--delete").stdout
    assert len(list((folder / "000").iterdir())) == 1
    assert lance_dagster(project, "clean", "mine").stdout == "nothing is superseded\n"


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
    monkeypatch.setattr(cli, "_experiment", lambda name: tiny_experiment(tmp_path).experiment)
    result = CliRunner().invoke(main, ["whatif", "tiny", "1"])
    assert result.exit_code == 1
    assert "there is no table at" in result.output


def test_whatif_prints_a_line_per_setting_of_an_iteration_that_ran(
    evolved: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
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

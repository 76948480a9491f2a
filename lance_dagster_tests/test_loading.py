"""The code location: loads without warnings, without heavy libraries, without network, GPU or key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import yaml

from lance_dagster.components.self_evolution import ExperimentFile
from lance_dagster.settings import parse_settings
from lance_dagster_tests.tiny import REPOSITORY

HEAVY = ["torch", "transformers", "trl", "lm_eval", "matplotlib", "datasets", "vllm"]


def run(*command: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment},
    )


def test_loading_imports_no_heavy_library() -> None:
    code = (
        "import sys, json; from lance_dagster.definitions import defs; defs(); "
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_loading_gives_no_warning() -> None:
    code = "from lance_dagster.definitions import defs; defs().resolve_asset_graph().toposorted_asset_keys"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr


def test_loading_opens_no_connection() -> None:
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network used while loading')\n"
        "socket.socket.connect = refuse; socket.create_connection = refuse; socket.getaddrinfo = refuse\n"
        "from lance_dagster.definitions import defs; defs()"
    )
    done = run(sys.executable, "-c", code, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr


def test_dg_check_defs_passes_without_warning() -> None:
    done = run(str(Path(sys.executable).with_name("dg")), "check", "defs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    assert "All definitions loaded successfully" in done.stdout + done.stderr


def test_the_graph_is_the_one_that_the_readme_promises() -> None:
    from lance_dagster.definitions import defs

    graph = defs().resolve_asset_graph()
    expected = {
        "seed_instructions": set(),
        "seed_reviews": set(),
        "base_checkpoint": set(),
        "initial_checkpoint": {"base_checkpoint", "seed_instructions", "seed_reviews"},
        "baseline_scores": {"base_checkpoint", "initial_checkpoint", "seed_instructions", "seed_reviews"},
        "promoted_checkpoint": set(),
        "policy_model": {"initial_checkpoint", "promoted_checkpoint"},
        "reviewed_seed": {"policy_model", "seed_instructions"},
        "instruction_candidates": {"policy_model", "reviewed_seed"},
        "preference_candidates": {"policy_model", "reviewed_seed"},
        "candidate_ledger": {"policy_model", "instruction_candidates", "preference_candidates", "reviewed_seed"},
        "sft_set": {"policy_model", "candidate_ledger", "reviewed_seed", "seed_reviews"},
        "preference_set": {"policy_model", "candidate_ledger", "reviewed_seed"},
        "sft_checkpoint": {"policy_model", "sft_set"},
        "dpo_checkpoint": {"sft_checkpoint", "preference_set"},
        "eval_scores": {"sft_checkpoint", "dpo_checkpoint"},
        "drift": {"policy_model", "dpo_checkpoint", "seed_instructions"},
        "evolution_report": {"baseline_scores", "eval_scores", "drift"},
    }
    for experiment in ("mini", "mini_discovery", "qwen2_7b"):
        found = {
            key.path[1]: {parent.path[1] for parent in graph.get(key).parent_keys}
            for key in graph.get_all_asset_keys()
            if key.path[0] == experiment
        }
        assert found == expected


def test_only_the_promotion_crosses_iterations() -> None:
    from lance_dagster.definitions import defs

    graph = defs().resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        crossing = graph.get(key).partition_mappings
        if key.path[1] == "policy_model":
            promoted = dg.AssetKey([key.path[0], "promoted_checkpoint"])
            assert set(crossing) == {promoted}
            assert isinstance(crossing[promoted], dg.StaticPartitionMapping)
        else:
            assert not crossing, key


def test_every_asset_is_described_owned_and_versioned() -> None:
    from lance_dagster.definitions import defs

    graph = defs().resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        assert node.description and node.owners and node.kinds and node.code_version, key
        assert node.group_name == key.path[0]


def project_with(folder: Path, changes: dict[str, str]) -> Path:
    """A copy of the project whose only experiment is `mine`: qwen2_7b with some of its text replaced."""
    shutil.copytree(REPOSITORY / "lance_dagster", folder / "lance_dagster", ignore=shutil.ignore_patterns("base"))
    for name in ("pyproject.toml", "workspace.yaml", "dagster.yaml"):
        shutil.copyfile(REPOSITORY / name, folder / name)
    text = (REPOSITORY / "lance_dagster/defs/qwen2_7b/defs.yaml").read_text()
    for old, new in {"experiment: qwen2_7b": "experiment: mine", **changes}.items():
        assert old in text, old
        text = text.replace(old, new)
    shutil.rmtree(folder / "lance_dagster/defs")
    (folder / "lance_dagster/defs/mine").mkdir(parents=True)
    (folder / "lance_dagster/defs/mine/defs.yaml").write_text(text)
    return folder


def dg_check(what: str, folder: Path, **environment: str) -> tuple[int, str]:
    """Exit status and output of `dg check <what>` in a project."""
    command = str(Path(sys.executable).with_name("dg"))
    done = run(command, "check", what, cwd=folder, PYTHONPATH=str(folder), **environment)
    return done.returncode, done.stdout + done.stderr


WRONG = {"threshold: 7.0": "threshold: 70.0", "samples: 4": "sample: 4", "max_rows_per_iteration: 20000": "seed: many"}
LOAD = "from lance_dagster.definitions import defs; defs()"


def test_dg_check_points_at_the_line_of_a_wrong_setting(tmp_path: Path) -> None:
    project = project_with(tmp_path, WRONG)
    for what in ("yaml", "defs"):
        status, text = dg_check(what, project)
        assert status != 0
        assert "defs/mine/defs.yaml:20" in text and "70.0 is greater than the maximum of 10" in text, text
        assert "'sample' was unexpected" in text, text


def test_loading_wrong_settings_names_the_file_the_field_the_value_the_range_and_an_example(tmp_path: Path) -> None:
    project = project_with(tmp_path, WRONG)
    loading = run(sys.executable, "-c", LOAD, cwd=project, PYTHONPATH=str(project)).stderr
    assert f"SettingsError: {project}/lance_dagster/defs/mine/defs.yaml, experiment mine: wrong settings" in loading
    assert "construction.threshold: Input should be less than or equal to 10 (got 70.0)" in loading
    assert "allowed: number, 0 to 10, such as 7.0" in loading
    assert "construction.sample: Extra inputs are not permitted (got 4); allowed: a section with" in loading
    assert "construction.seed" in loading and "(got 'many'); allowed: whole number, 0 or more" in loading


def test_the_experiment_of_the_readme_is_valid() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    example = yaml.safe_load(readme.partition("```yaml")[2].partition("```")[0])
    attributes = ExperimentFile.model_validate(example["attributes"])
    assert parse_settings(attributes.settings).evaluation.question_fields == ("question",)


def test_a_copied_experiment_that_kept_its_name_is_refused(tmp_path: Path) -> None:
    project = project_with(tmp_path, {})
    shutil.copytree(project / "lance_dagster/defs/mine", project / "lance_dagster/defs/copy")
    text = run(sys.executable, "-c", LOAD, cwd=project, PYTHONPATH=str(project)).stderr
    assert "defs/copy/defs.yaml: experiment is 'mine', but its folder is 'copy'. Give both the same name." in text, text


def test_a_setting_can_come_from_the_environment_and_is_checked_then(tmp_path: Path) -> None:
    changes = {"path: Qwen/Qwen2-7B": 'path: "{{ env.BASE_MODEL }}"', "set: lance_v1": 'set: "{{ env.PROMPTS }}"'}
    project = project_with(tmp_path, changes)
    known = {"PYTHONPATH": str(project), "BASE_MODEL": "models/mine"}
    good = run(sys.executable, "-c", LOAD, cwd=project, PROMPTS="lance_v1", **known)
    assert good.returncode == 0, good.stderr
    bad = run(sys.executable, "-c", LOAD, cwd=project, PROMPTS="no_such_set", **known)
    assert "prompts.set: no prompt set 'no_such_set'; shipped are lance_v1, mini_v1" in bad.stderr, bad.stderr

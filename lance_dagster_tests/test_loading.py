"""The code location: loads without warnings, without heavy libraries, without network, GPU or key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg

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
    for experiment in ("mini", "qwen2_7b"):
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


def test_wrong_settings_in_yaml_name_the_file_the_field_the_value_and_the_range(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "lance_dagster", tmp_path / "lance_dagster", ignore=shutil.ignore_patterns("base"))
    for name in ("pyproject.toml", "workspace.yaml", "dagster.yaml"):
        shutil.copyfile(REPOSITORY / name, tmp_path / name)
    shipped = tmp_path / "lance_dagster/defs/mini/defs.yaml"
    wrong = shipped.read_text().replace("threshold: 7.0", "threshold: 70.0").replace("samples: 4", "sample: 4")
    shipped.write_text(wrong)
    dg_binary = str(Path(sys.executable).with_name("dg"))
    done = run(dg_binary, "check", "yaml", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "defs/mini/defs.yaml" in text, text
    assert "threshold" in text and "70.0" in text and "10" in text, text
    assert "sample" in text, text

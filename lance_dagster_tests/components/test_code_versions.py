"""Code versions: a changed setting marks the assets whose content it decides, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from lance_dagster.components.construction_assets import construction_assets
from lance_dagster.components.evaluation_assets import evaluation_assets, evolution_report_asset
from lance_dagster.components.experiment import Experiment
from lance_dagster.components.staleness import Wiring
from lance_dagster.components.training_assets import training_assets
from lance_dagster.settings import parse_settings
from lance_dagster_tests.tiny import REPOSITORY, tiny_settings

GENERATING = {"reviewed_seed", "instruction_candidates", "preference_candidates", "candidate_ledger"}
SCORING = {"baseline_scores", "eval_scores"}
SEEDS = {"seed_instructions", "seed_reviews"}
REPORT = {"evolution_report"}
TRAINED = {"initial_checkpoint", "sft_checkpoint", "dpo_checkpoint"}
# A second M_0 is trained for the noise floor.
INITIAL = {"initial_checkpoint", "baseline_scores"}
SYSTEM_PROMPT = {*GENERATING, "sft_set", "preference_set", "initial_checkpoint", "baseline_scores", "drift"}


def versions(settings: Mapping[str, Any], root: Path) -> dict[str, str | None]:
    """Code version by asset."""
    experiment = Experiment("tiny", parse_settings(dict(settings)), root)
    made = [asset for asset in training_assets(experiment) if isinstance(asset, dg.AssetsDefinition)]
    report = evolution_report_asset(experiment, Wiring.of([], {}))
    assets = [*construction_assets(experiment), *made, *evaluation_assets(experiment), report]
    return {spec.key.path[-1]: spec.code_version for asset in assets for spec in asset.specs}


def changed(root: Path, before: Mapping[str, Any], name: str, value: object) -> set[str]:
    """The assets that one other setting marks as out of date."""
    *sections, last = name.split(".")
    after = dict(before)
    inner = after
    for section in sections:
        inner[section] = dict(inner.get(section, {}))
        inner = inner[section]
    inner[last] = value
    old, new = versions(before, root), versions(after, root)
    return {asset for asset in old if old[asset] != new[asset]}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seed.instructions", "other.jsonl", {"seed_instructions", *REPORT}),
        ("seed.max_words", 99, SEEDS),
        ("seed.control_tokens", ["</s>"], {"instruction_candidates", "preference_candidates", *SEEDS}),
        ("seed.growth", "merge", {"reviewed_seed", *REPORT}),
        ("seed.max_rows", 50, {"reviewed_seed"}),
        ("model.threads", 1, set()),
        ("model.dtype", "bfloat16", {*GENERATING, *SCORING, "drift", *TRAINED}),
        ("model.path", "other/model", {"base_checkpoint", *REPORT}),
        ("model.revision", "v2", {"base_checkpoint"}),
        ("model.device", "auto", set()),
        ("model.trust_remote_code", True, {*TRAINED, "baseline_scores"}),
        ("engine.max_batch_rows", 8, set()),
        ("construction.threshold", 6.0, {"reviewed_seed", "sft_set", *REPORT}),
        ("construction.rereview_seeds", False, {"reviewed_seed"}),
        ("construction.reviews_per_item", 2, {"reviewed_seed", "candidate_ledger", *REPORT}),
        ("construction.review.temperature", 0.5, {"reviewed_seed", "candidate_ledger"}),
        ("construction.acceptance_judge", "initial", {"candidate_ledger"}),
        ("construction.response.temperature", 0.5, {"instruction_candidates"}),
        ("construction.flawed_response.top_p", 0.5, {"preference_candidates"}),
        ("construction.responses_per_instruction", 1, {"instruction_candidates"}),
        ("construction.samples", 3, {"instruction_candidates", "preference_candidates", *REPORT}),
        ("construction.filters.rouge_threshold", 0.5, {"candidate_ledger"}),
        ("construction.filters.contamination", "flag", {"candidate_ledger", *SEEDS}),
        ("construction.pairs_per_prompt", "best", {"candidate_ledger", "preference_set"}),
        ("construction.accept_above", 7.0, {"candidate_ledger", *REPORT}),
        ("construction.preference_gap", 1.0, {"candidate_ledger", "preference_set", *REPORT}),
        ("construction.seed", 1, GENERATING),
        ("training.accumulate", False, {"sft_set", "preference_set"}),
        ("training.replay_reviews", False, {"sft_set"}),
        ("training.seed", 7, {*TRAINED, "baseline_scores"}),
        ("training.initial.epochs", 2.0, INITIAL),
        ("training.initial.gradient_checkpointing", True, set()),
        ("training.sft.epochs", 2.0, {"sft_checkpoint"}),
        ("training.sft.optimiser", "adafactor", {"sft_checkpoint"}),
        ("training.sft.lora_rank", 8, {"sft_checkpoint"}),
        ("training.sft.lora_alpha", 8, set()),  # there are no adapters
        ("training.start_from", "initial", {"sft_checkpoint"}),
        ("training.steps_of", "other", {"sft_checkpoint"}),
        ("training.dpo.beta", 0.2, {"dpo_checkpoint"}),
        ("training.dpo.reference", "live", set()),
        ("training.dpo.min_weights_changed", 0.5, set()),
        ("training.accelerate_config", "accelerate.yaml", set()),
        ("prompts.system_in_preferences", False, {"preference_set"}),
        ("evaluation.tasks", ["mini_test"], {"candidate_ledger", *SEEDS, *SCORING}),
        ("evaluation.question_fields", ["instruction"], {"candidate_ledger", *SEEDS}),
        ("evaluation.limit", 30, SCORING),
        ("evaluation.batch_size", 8, set()),
        ("evaluation.drift_rows", 8, {"drift"}),
        ("evaluation.noise_floor", "off", {"baseline_scores"}),
    ],
)
def test_a_setting_marks_what_it_decides_and_nothing_else(
    tmp_path: Path, name: str, value: object, expected: set[str]
) -> None:
    assert changed(tmp_path, tiny_settings(tmp_path), name, value) == expected


def test_a_setting_that_a_switch_makes_idle_marks_nothing(tmp_path: Path) -> None:
    idle = tiny_settings(
        tmp_path,
        construction={"filters": {"contamination": "off"}},
        training={"replay_seed": "none"},
        evaluation={"noise_floor": "off"},
    )
    assert changed(tmp_path, idle, "evaluation.question_fields", ["instruction"]) == set()
    assert changed(tmp_path, idle, "construction.threshold", 6.0) == {"reviewed_seed", *REPORT}
    assert changed(tmp_path, idle, "training.initial.epochs", 2.0) == {"initial_checkpoint"}
    without_dpo = tiny_settings(tmp_path, training={"stages": ["sft"]})
    assert changed(tmp_path, without_dpo, "training.dpo.epochs", 2.0) == set()
    assert changed(tmp_path, tiny_settings(tmp_path), "training.stages", ["sft"]) >= {"dpo_checkpoint"}


def test_another_system_prompt_marks_every_asset_that_shows_it_to_a_model(tmp_path: Path) -> None:
    shipped = (REPOSITORY / "lance_dagster/prompts/sets/mini_v1.yaml").read_text()
    assert "system: null" in shipped
    (tmp_path / "plain.yaml").write_text(shipped)
    (tmp_path / "polite.yaml").write_text(shipped.replace("system: null", "system: Be polite."))
    before = tiny_settings(tmp_path, prompts={"set": "plain.yaml"})
    assert changed(tmp_path, before, "prompts.set", "polite.yaml") == SYSTEM_PROMPT

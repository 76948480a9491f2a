"""The loop as a whole, with the real model, TRL, lm-eval and files."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import load_file

from lance_dagster import records
from lance_dagster.components.parquet_io import ParquetIOManager
from lance_dagster.components.self_evolution import experiment_definitions
from lance_dagster.records import CONTAMINATION_HITS
from lance_dagster.report.funnel import build_funnel
from lance_dagster.storage.tables import read_table, table_digest
from lance_dagster_tests.tiny import Tiny, tiny_experiment

SCHEMAS = {
    "reviewed_seed": records.REVIEWED_SEED,
    "instruction_candidates": records.CANDIDATES,
    "preference_candidates": records.CANDIDATES,
    "candidate_ledger": records.CANDIDATE_LEDGER,
    "sft_set": records.SFT_SET,
    "preference_set": records.PREFERENCE_SET,
    "eval_scores": records.EVAL_SCORES,
    "drift": records.DRIFT,
}


def weights(tiny: Tiny, asset: str, partition: str = "current") -> dict[str, object]:
    manifest = tiny.experiment.store.checkpoint(asset, partition)
    return load_file(f"{manifest.location}/model.safetensors")


def test_every_table_has_its_schema_and_rows(evolved: Tiny) -> None:
    for partition in ("000", "001"):
        for asset, schema in SCHEMAS.items():
            table = evolved.table(asset, partition)
            records.checked(table, schema)
            assert table.num_rows > 0, f"{asset}[{partition}]"


def test_the_data_version_of_a_table_is_the_digest_of_its_content(evolved: Tiny) -> None:
    for asset in SCHEMAS:
        event = evolved.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=evolved.experiment.key(asset), asset_partitions=["001"]), limit=1
        ).records[0]
        tags = event.asset_materialization.tags or {}
        assert tags["dagster/data_version"] == table_digest(evolved.table(asset, "001")), asset


def test_the_web_ui_is_told_where_each_table_lies(evolved: Tiny) -> None:
    for asset, partition in (("seed_instructions", None), ("sft_set", "000"), ("sft_set", "001")):
        key, keys = dg.AssetKey(["tiny", asset]), None if partition is None else [partition]
        [record] = evolved.instance.fetch_materializations(dg.AssetRecordsFilter(key, keys), limit=1).records
        assert record.asset_materialization is not None
        told = record.asset_materialization.metadata["dagster/uri"].value
        assert Path(str(told)) == Path(str(evolved.experiment.store.table(asset, partition)))


def test_sft_and_dpo_change_every_weight_matrix(evolved: Tiny) -> None:
    chain = [("initial_checkpoint", "current"), ("sft_checkpoint", "000"), ("dpo_checkpoint", "000")]
    for (before, partition), (after, next_partition) in pairwise(chain):
        old, new = weights(evolved, before, partition), weights(evolved, after, next_partition)
        assert old.keys() == new.keys()
        unchanged = [name for name in old if (old[name] == new[name]).all()]  # type: ignore[attr-defined]
        assert not unchanged, f"{after}: {unchanged}"


def test_the_next_iteration_starts_from_the_dpo_checkpoint_of_the_last(evolved: Tiny) -> None:
    dpo = evolved.manifest("dpo_checkpoint", "000")
    policy = evolved.manifest("policy_model", "001")
    assert policy["model"]["digest"] == dpo["digest"]
    assert evolved.manifest("sft_checkpoint", "001")["parent_digest"] == dpo["digest"]
    sft = evolved.manifest("sft_checkpoint", "001")
    assert evolved.manifest("dpo_checkpoint", "001")["parent_digest"] == sft["digest"]
    assert [entry["label"] for entry in policy["ancestors"]] == ["base", "initial"]
    for name in ("reviewed_seed", "sft_set", "preference_set"):
        assert policy["tables"][name] == table_digest(evolved.table(name, "000"))
    written = set(evolved.table("candidate_ledger", "001")["model_digest"].to_pylist())
    assert written == {dpo["digest"]}


SCOPE_ALL = {"rouge_scope": "all", "rouge_threshold": 0.9, "rouge_responses": False}


def test_every_candidate_is_in_the_ledger_once_with_a_fate(evolved: Tiny) -> None:
    for partition in ("000", "001"):
        ledger = evolved.table("candidate_ledger", partition)
        generated = pa.concat_tables(
            evolved.table(name, partition) for name in ("instruction_candidates", "preference_candidates")
        )
        assert sorted(ledger["row_id"].to_pylist()) == sorted(generated["row_id"].to_pylist())
        assert len(set(ledger["row_id"].to_pylist())) == ledger.num_rows
        for kept, reason in zip(ledger["kept"].to_pylist(), ledger["drop_reason"].to_pylist(), strict=True):
            assert kept == (reason is None)


def test_the_funnel_adds_up_to_the_number_of_generated_rows(evolved: Tiny) -> None:
    for partition in ("000", "001"):
        tables = {name: evolved.table(name, partition) for name in ("reviewed_seed", "candidate_ledger")}
        sets = {name: evolved.table(name, partition) for name in ("sft_set", "preference_set")}
        counted = build_funnel(int(partition), *tables.values(), *sets.values())
        for kind in counted.kinds:
            generated = sum(
                evolved.table(name, partition)["kind"].to_pylist().count(kind.kind)
                for name in ("instruction_candidates", "preference_candidates")
            )
            assert kind.generated == generated == kind.kept + sum(dropped.rows for dropped in kind.dropped)


def test_the_hits_of_contamination_are_a_table_of_each_iteration(evolved: Tiny) -> None:
    for partition in ("000", "001"):
        hits = evolved.table("contamination_hits", partition)
        assert hits.schema.equals(CONTAMINATION_HITS)
        flagged = evolved.table("candidate_ledger", partition).filter(pc.field("contaminated"))
        assert sorted(hits["row_id"].to_pylist()) == sorted(flagged["row_id"].to_pylist())
        assert not any(flagged["kept"].to_pylist())


def test_with_the_scope_all_the_index_goes_on_to_the_next_iteration(tmp_path: Path) -> None:
    tiny = tiny_experiment(
        tmp_path,
        construction={"samples": 2, "filters": {**SCOPE_ALL, "instruction_words": [3, 20], "response_words": [1, 8]}},
    )
    assert tiny.run("setup").success
    assert tiny.run("one_iteration", "000").success
    assert tiny.run("one_iteration", "001").success
    first, second = tiny.table("rouge_index", "000"), tiny.table("rouge_index", "001")
    assert tiny.manifest("policy_model", "001")["tables"]["rouge_index"] == table_digest(first)
    assert second.slice(0, first.num_rows).equals(first)
    ledgers = [tiny.table("candidate_ledger", key).to_pylist() for key in ("000", "001")]
    kept = [{row["instruction"] for row in rows if row["kind"] == "instruction" and row["kept"]} for rows in ledgers]
    assert kept[0]
    assert not kept[0] & kept[1], "what was kept before is a repetition now"
    known = set(first["row_id"].to_pylist())
    assert known & {row["rouge_l_against"] for row in ledgers[1]} or len(kept[1]) == 0


def test_generated_training_rows_are_whole_kept_and_not_asked_by_the_evaluation(evolved: Tiny) -> None:
    from lance_dagster.construction.filters.contamination import EvaluationIndex
    from lance_dagster.evaluation.benchmarks import evaluation_texts

    evaluation = evolved.experiment.settings.evaluation
    questions = EvaluationIndex(evaluation_texts(evaluation, evolved.experiment.tasks_path))
    assert len(questions) > 100
    ledgers = pa.concat_tables(evolved.table("candidate_ledger", key) for key in ("000", "001"))
    by_id = {row["row_id"]: row for row in ledgers.to_pylist()}
    generated = [row for row in evolved.table("sft_set", "001").to_pylist() if row["origin"] == "generated"]
    assert generated
    for row in generated:
        source = by_id[row["row_id"]]
        assert source["kept"] and source["finish_reason"] == "stop" and source["score"] > 8.0
        assert questions.overlap(row["prompt"]) is None


def test_the_sets_accumulate_over_iterations(evolved: Tiny) -> None:
    for name in ("sft_set", "preference_set"):
        first, second = evolved.table(name, "000"), evolved.table(name, "001")
        old = {row["row_id"] for row in first.to_pylist() if row["iteration"] == 0}
        carried = {row["row_id"] for row in second.to_pylist() if row["iteration"] == 0}
        assert old == carried


def test_pairs_are_ordered_by_reward_with_the_gap_of_the_settings(evolved: Tiny) -> None:
    for row in evolved.table("preference_set", "001").to_pylist():
        assert row["chosen_score"] - row["rejected_score"] > 2.0
        assert row["chosen"] != row["rejected"]


def test_both_checkpoints_base_and_m0_are_scored_with_standard_errors(evolved: Tiny) -> None:
    stages = set(evolved.table("baseline_scores")["stage"].to_pylist())
    assert stages == {"base", "initial", "initial_again"}
    scores = evolved.table("eval_scores", "000").to_pylist()
    main = {row["stage"]: row for row in scores if row["task"] == "mini_dev"}
    assert set(main) == {"sft", "dpo"}
    for row in main.values():
        assert 0 <= row["value"] <= 1 and row["stderr"] is not None and row["documents"] == 60
        parts = [part for part in scores if part["stage"] == row["stage"] and part["task"].startswith("mini_dev/")]
        assert sum(part["documents"] for part in parts) == 60
        weighted = sum(part["value"] * part["documents"] for part in parts) / 60
        assert math.isclose(weighted, row["value"], abs_tol=1e-9)


def test_the_noise_floor_is_a_second_training_of_m0(evolved: Tiny) -> None:
    table = evolved.table("baseline_scores")
    digests = {row["stage"]: row["model_digest"] for row in table.to_pylist()}
    assert digests["initial"] == evolved.manifest("initial_checkpoint")["digest"]
    assert digests["initial_again"] not in ("", digests["initial"], digests["base"])
    items = {stage: read_table(evolved.experiment.store.items(digest)) for stage, digest in digests.items()}
    for stage, table in items.items():
        assert table.num_rows == 60, stage
        assert set(table["model_digest"].to_pylist()) == {digests[stage]}


def test_drift_names_every_earlier_model(evolved: Tiny) -> None:
    rows = evolved.table("drift", "001").to_pylist()
    assert [row["against"] for row in rows] == ["base", "initial", "policy_001"]
    assert all(row["kl"] > 0 and row["weight_distance"] > 0 for row in rows)


def test_the_report_shows_the_figures_that_were_measured(evolved: Tiny) -> None:
    folder = evolved.experiment.store.folder
    report = json.loads((folder / "report.json").read_text())
    stages = ["base", "initial", "initial_again", "sft", "dpo", "sft", "dpo"]
    assert [row["stage"] for row in report["scores"]] == stages
    measured = pa.concat_tables(
        [evolved.table("baseline_scores"), evolved.table("eval_scores", "000"), evolved.table("eval_scores", "001")]
    )
    main = measured.filter(pc.equal(measured["task"], "mini_dev"))["value"].to_pylist()
    assert [row["mean"] for row in report["scores"]] == main
    page = (folder / "report.html").read_text()
    for value in main:
        assert f"{100 * value:.1f}" in page
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_manifest_of_a_checkpoint_says_how_it_was_made(evolved: Tiny) -> None:
    manifest = evolved.manifest("sft_checkpoint", "001")
    assert manifest["data"] == {"sft_set": table_digest(evolved.table("sft_set", "001"))}
    assert {"torch", "transformers", "trl"} <= set(manifest["versions"])
    assert manifest["settings"]["epochs"] == 1 and manifest["seed"] == 43
    assert manifest["metrics"]["curve"] and manifest["metrics"]["tokens_per_second"] > 0
    dpo = evolved.manifest("dpo_checkpoint", "001")["metrics"]
    assert math.isclose(dpo["gate/first_loss"], math.log(2), abs_tol=0.02)
    assert dpo["gate/eos_in_labels"] == dpo["gate/template_parity"] == 1.0


def test_a_frozen_judge_rewards_the_same_candidates_with_the_initial_model(evolved: Tiny, tmp_path: Path) -> None:
    shutil.copytree(evolved.experiment.root, tmp_path / "copy", ignore=shutil.ignore_patterns("completions", "dagster"))
    settings = evolved.experiment.settings
    construction = settings.construction.model_copy(update={"acceptance_judge": "initial"})
    frozen = replace(
        evolved.experiment, settings=settings.model_copy(update={"construction": construction}), root=tmp_path / "copy"
    )
    assert frozen.store.base.is_relative_to(tmp_path)
    ledger = frozen.key("candidate_ledger")
    result = dg.materialize(
        experiment_definitions(frozen).assets or (), partition_key="001", selection=[ledger],
        resources={frozen.io_manager_key: ParquetIOManager(base_path=frozen.store.base)},
    )  # fmt: skip
    assert result.success
    table = read_table(frozen.store.table("candidate_ledger", "001"))
    by_policy = {row["row_id"]: row for row in evolved.table("candidate_ledger", "001").to_pylist()}
    by_initial = {row["row_id"]: row for row in table.to_pylist()}
    assert by_policy.keys() == by_initial.keys()
    assert any(by_policy[name]["rationales"] != row["rationales"] for name, row in by_initial.items())
    used = [path.name for path in frozen.store.cache.iterdir()]
    assert used == [evolved.manifest("initial_checkpoint")["digest"]]

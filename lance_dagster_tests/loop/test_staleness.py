"""Which partition is out of date after which change: as the web UI shows it, and as is_current says it.

A truth table: every asset changes its content once, in iteration 000 where it has iterations, and every partition of
every asset is asked. Dagster's own answer comes from a real web server.
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from lance_dagster.components.checks import is_current
from lance_dagster.components.staleness import SETTINGS, Events, Place, Situation, outdated_iterations
from lance_dagster_tests.loop.events import latest_tags, opened, report_content, with_history, with_served_history
from lance_dagster_tests.loop.server import Server, serving
from lance_dagster_tests.tiny import Tiny, tiny_settings

# Written by hand from the graph of the README: the direct children, in the same iteration.
CHILDREN = {
    "seed_instructions": {"initial_checkpoint", "baseline_scores", "reviewed_seed", "drift"},
    "seed_reviews": {"initial_checkpoint", "baseline_scores", "sft_set"},
    "base_checkpoint": {"initial_checkpoint", "baseline_scores"},
    "initial_checkpoint": {"baseline_scores", "policy_model"},
    "baseline_scores": {"evolution_report"},
    "policy_model": {
        "reviewed_seed", "instruction_candidates", "preference_candidates", "candidate_ledger", "sft_set",
        "preference_set", "sft_checkpoint", "drift",
    },
    "reviewed_seed": {
        "instruction_candidates", "preference_candidates", "candidate_ledger", "sft_set", "preference_set",
    },
    "instruction_candidates": {"candidate_ledger"},
    "preference_candidates": {"candidate_ledger"},
    "candidate_ledger": {"sft_set", "preference_set"},
    "sft_set": {"sft_checkpoint"},
    "preference_set": {"dpo_checkpoint"},
    "sft_checkpoint": {"dpo_checkpoint", "eval_scores"},
    "dpo_checkpoint": {"eval_scores", "drift"},
    "eval_scores": {"evolution_report"},
    "drift": {"evolution_report"},
    "evolution_report": set(),
}  # fmt: skip
SETUP = {"seed_instructions", "seed_reviews", "base_checkpoint", "initial_checkpoint", "baseline_scores"}
UNPARTITIONED = SETUP | {"evolution_report"}
ITERATIONS = ("000", "001")


def expected(changed: str) -> set[str]:
    """Partitions that are out of date when one artifact (of iteration 000) has other content."""
    stale = set()
    for child in CHILDREN[changed]:
        if child in UNPARTITIONED:
            stale.add(child)
        else:
            stale |= {f"{child}[{key}]" for key in (ITERATIONS if changed in SETUP else ("000",))}
    return stale | ({"policy_model[001]"} if changed == "dpo_checkpoint" else set())


def places(tiny: Tiny) -> list[Place]:
    return [
        (tiny.experiment.key(asset), key)
        for asset in CHILDREN
        for key in ([None] if asset in UNPARTITIONED else ITERATIONS)
    ]


def name(place: Place) -> str:
    return place[0].path[-1] + (f"[{place[1]}]" if place[1] else "")


def situation(tiny: Tiny) -> Situation:
    return Situation(Events(tiny.instance, tiny.wiring))


def shown(server: Server) -> dict[str, str]:
    """The stale status of every partition, as the UI asks for it."""
    asked = {}
    for asset in CHILDREN:
        for key in [None] if asset in UNPARTITIONED else ITERATIONS:
            asked[f"{asset}[{key}]" if key else asset] = (asset, f'(partition: "{key}")' if key else "")
    fields = " ".join(
        f'q{index}: assetNodeOrError(assetKey: {{path: ["tiny", "{asset}"]}}) {{ ... on AssetNode {{ '
        f"staleStatus{argument} }} }}"
        for index, (asset, argument) in enumerate(asked.values())
    )
    answer = server.query(f"{{ {fields} }}")
    return {place: answer[f"q{index}"]["staleStatus"] for index, place in enumerate(asked)}


def test_staleness_over_asset_changed_asset_asked_and_iteration_in_the_ui_and_in_the_checks(
    evolved: Tiny, tmp_path: Path
) -> None:
    with_served_history(evolved, tmp_path)
    tiny = opened(tmp_path, storage="data/dagster/storage")
    with serving(tmp_path, tiny_settings(tmp_path)) as server:
        assert set(shown(server).values()) == {"FRESH"}
        for changed in CHILDREN:
            partition = None if changed in UNPARTITIONED else "000"
            promoted = ["promoted_checkpoint"] if changed == "dpo_checkpoint" else []
            before = {each: latest_tags(tiny.instance, each, partition) for each in [changed, *promoted]}
            report_content(tiny.instance, changed, partition, "other content")
            stale = {place for place, status in shown(server).items() if status == "STALE"}
            assert stale == expected(changed), changed
            now = situation(tiny)
            assert {name(place) for place in places(tiny) if now.moved(place)} == expected(changed), changed
            for each, tags in before.items():  # back to the content that everything was made of
                report_content(tiny.instance, each, partition, tags["dagster/data_version"], alone=True)
            assert set(shown(server).values()) == {"FRESH"}, changed


def test_is_current_names_the_input_that_moved_in_later_iterations_too(evolved: Tiny, tmp_path: Path) -> None:
    with_history(evolved, tmp_path)
    tiny = opened(tmp_path)
    key = tiny.experiment.key
    assert is_current(situation(tiny), (key("drift"), "001")).passed
    report_content(tiny.instance, "dpo_checkpoint", "000", "other weights")
    direct = is_current(situation(tiny), (key("policy_model"), "001"))
    assert (
        not direct.passed and "moved since policy_model[001] was made: promoted_checkpoint[000]" in direct.explanation
    )
    far = is_current(situation(tiny), (key("sft_set"), "001"))
    assert not far.passed and far.explanation.endswith("promoted_checkpoint[000]; sft_set[001] builds on it")
    assert is_current(situation(tiny), (key("sft_set"), "000")).passed


def test_a_changed_setting_is_named_as_such(evolved: Tiny, tmp_path: Path) -> None:
    with_history(evolved, tmp_path)
    tiny = opened(tmp_path, construction={"threshold": 6.5})
    assert SETTINGS in is_current(situation(tiny), (tiny.experiment.key("reviewed_seed"), "000")).explanation


def test_the_report_lists_the_iterations_that_are_out_of_date(evolved: Tiny, tmp_path: Path) -> None:
    with_history(evolved, tmp_path)
    tiny = opened(tmp_path)
    assert outdated_iterations(situation(tiny)) == []
    report_content(tiny.instance, "sft_set", "001", "other rows")
    line = "Iteration 001 is out of date: sft_set[001] changed after sft_checkpoint[001] was made."
    assert outdated_iterations(situation(tiny)) == [line]
    result = tiny.run("report")
    assert result.success
    metadata = result.asset_materializations_for_node("tiny__evolution_report")[0].metadata
    assert metadata["iterations/out_of_date"].value == 1 and metadata["out_of_date"].value == f"- {line}"
    assert line in (tmp_path / "store/tiny/report.html").read_text()


@pytest.mark.parametrize(("asset", "passes"), [("reviewed_seed", True), ("eval_scores", False)])
def test_the_check_runs_with_its_asset_and_alone(evolved: Tiny, tmp_path: Path, asset: str, passes: bool) -> None:
    with_history(evolved, tmp_path)
    tiny = opened(tmp_path)
    report_content(tiny.instance, "sft_checkpoint", "000", "other weights")
    job = dg.define_asset_job("only_checks", dg.AssetSelection.checks_for_assets(tiny.experiment.key(asset)))
    result = (
        dg.Definitions.merge(tiny.definitions, dg.Definitions(jobs=[job]))
        .resolve_job_def("only_checks")
        .execute_in_process(instance=tiny.instance, tags={"dagster/partition": "000"})
    )
    found = {each.check_name: each for each in result.get_asset_check_evaluations()}
    assert found["is_current"].passed is passes
    assert found["is_current"].partition == "000"
    assert found["is_current"].severity == dg.AssetCheckSeverity.WARN

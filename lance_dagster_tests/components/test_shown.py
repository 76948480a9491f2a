"""What a partition's page shows: numbers that plot over iterations, a preview, and pictures."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from lance_dagster_tests.loop.test_faults import SEEDS, copy_of
from lance_dagster_tests.tiny import Tiny

NUMBERS = {
    "reviewed_seed": {"rows", "score/mean", "review/parsed_share", "branch/instruction", "branch/preference"},
    "candidate_ledger": {"rows", "score/mean", "filter/kept_fraction", "contamination/questions"},
    "sft_set": {"rows", "rows/new", "rows/generated"},
    "preference_set": {"rows", "rows/new"},
    "eval_scores": {"eval/sft/mini_dev/exact_match", "eval/dpo/mini_dev/exact_match", "evaluation/seconds"},
}
PICTURES = {"reviewed_seed": ["score/histogram"], "candidate_ledger": ["score/histogram", "funnel/picture"]}


def test_numbers_previews_and_pictures_of_an_iteration(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    assert tiny.run("setup", select=SEEDS).success
    result = tiny.run("one_iteration", "001", select=list(NUMBERS))
    assert result.success
    shown = {
        event.asset_key.path[-1]: event.step_materialization_data.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }
    for asset, names in NUMBERS.items():
        for name in names:
            assert isinstance(shown[asset][name], dg.IntMetadataValue | dg.FloatMetadataValue), (asset, name)
        assert "|" in str(shown[asset]["preview"].value)
        for picture in PICTURES.get(asset, []):
            assert str(shown[asset][picture].value).startswith("![") and "data:image/png" in str(
                shown[asset][picture].value
            )

"""The sensor that propagates changes, with a real web server, daemon and run processes: its runs are counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lance_dagster_tests.loop.events import with_served_history
from lance_dagster_tests.loop.server import Server, serving, wait_until
from lance_dagster_tests.loop.test_backfill import LOOP
from lance_dagster_tests.tiny import TRAINING, Tiny, tiny_settings


def settings_with(home: Path, learning_rate: float) -> dict[str, Any]:
    return tiny_settings(
        home,
        training={"dpo": {**TRAINING, "epochs": 1, "learning_rate": learning_rate}},
        automation={"interval_seconds": 5},
    )


def requested(server: Server) -> list[tuple[str, str]]:
    """(asset, partition) of every run that the sensor requested, in the order of starting."""
    found = []
    for run in server.runs(**{"lance/sensor": "changes"}):
        assert run["status"] == "SUCCESS", run
        partition = next(tag["value"] for tag in run["tags"] if tag["key"] == "dagster/partition")
        found += sorted((key["path"][-1], partition) for key in run["assetSelection"])
    return found


def test_a_finished_backfill_is_followed_by_no_run_and_one_change_by_exactly_one_wave(
    evolved: Tiny, tmp_path: Path
) -> None:
    with_served_history(evolved, tmp_path)
    with serving(tmp_path, settings_with(tmp_path, 2e-4)) as server:  # every DPO checkpoint gets other content
        backfill = server.backfill(LOOP, ["000", "001"])
        server.start_sensor("tiny_changes")
        assert server.wait_for_backfill(backfill, 1200) == "COMPLETED_SUCCESS"
        server.wait_for_rest("tiny_changes", 300)
        assert requested(server) == [], "the backfill had consumed every change itself"

        (tmp_path / "settings.json").write_text(json.dumps(settings_with(tmp_path, 3e-4)))
        server.reload()  # the web server at once; the daemon loads its own copy anew every minute
        wait_until(lambda: server.runs(**{"lance/sensor": "changes"}) or None, 300, "the change was not noticed")
        server.wait_for_rest("tiny_changes", 1800)
        wave = requested(server)
        expected = {("dpo_checkpoint", "000"), ("eval_scores", "000"), ("drift", "000")} | {(a, "001") for a in LOOP}
        assert set(wave) == expected
        assert max(Counter(wave).values()) == 1, "something ran twice"
        order = [request for request in wave if request[0] in ("dpo_checkpoint", "policy_model", "sft_checkpoint")]
        assert order == [
            ("dpo_checkpoint", "000"),
            ("policy_model", "001"),
            ("sft_checkpoint", "001"),
            ("dpo_checkpoint", "001"),
        ]

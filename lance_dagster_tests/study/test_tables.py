"""The tables of a study say what the item scores say."""

from __future__ import annotations

import json
from pathlib import Path

from lance_dagster.study.outcome import Outcome, Scored
from lance_dagster.study.tables import against, curve_table, oracle_table, scores_table, verdicts, write_study

ITEMS = 400


def scored(label: str, right: int) -> Scored:
    """The first ``right`` of 400 items are answered."""
    return Scored(label, f"digest of {label} {right}", tuple(float(n < right) for n in range(ITEMS)))


def outcome(variant: str, seed: int, right: int, initial: int = 120) -> Outcome:
    checkpoints = (scored("base", 100), scored("M_0", initial), scored("M_0^S", right + 4), scored("M_1", right))
    return Outcome(variant, f"what {variant} is", seed, checkpoints, None)


STUDY = [outcome("lance", 0, 200), outcome("lance", 1, 130), outcome("replay", 0, 110), outcome("replay", 1, 128)]


def test_a_run_is_held_against_replay_of_its_own_seed() -> None:
    first, second = (against(each, STUDY) for each in STUDY[:2])
    assert {name: difference.value for name, difference in first.items()} == {"base": 0.25, "M_0": 0.2, "replay": 0.225}
    assert second["replay"].value == 0.005
    assert "replay" not in against(STUDY[2], STUDY)


def test_a_star_marks_what_is_beyond_noise() -> None:
    lines = scores_table(STUDY).splitlines()
    assert lines[0].startswith("| variant | seed | base | M_0 | M_0^S | M_1 | against base")
    first, second = lines[2], lines[3]
    assert "| 25.0 | 30.0 | 51.0 | 50.0 | +25.0 [" in first
    assert first.count("*") == 3
    assert "+0.5 [-" in second or "+0.5 [+0.0" in second
    assert not second.split("|")[9].strip().endswith("*"), "two items of 400 are not beyond noise"


def test_the_verdict_counts_the_seeds_beyond_noise() -> None:
    assert verdicts(STUDY) == [
        "M_1 against base: +25.0, +7.5 points, above it beyond noise on 2 of 2 seeds.",
        "M_1 against M_0: +20.0, +2.5 points, above it beyond noise on 2 of 2 seeds.",
        "M_1 against replay: +22.5, +0.5 points, above it beyond noise on 1 of 2 seeds.",
    ]


def test_a_loss_is_said_too() -> None:
    worse = [outcome("lance", 0, 50), outcome("replay", 0, 110)]
    assert verdicts(worse)[0] == (
        "M_1 against base: -12.5 points, above it beyond noise on 0 of 1 seeds, below it beyond noise on 1."
    )


def test_the_curve_is_the_mean_over_the_seeds() -> None:
    assert "| lance: what lance is | 25.0 | 30.0 | 42.2 | 41.2 |" in curve_table(STUDY)


def test_without_an_oracle_there_is_no_oracle_table(tmp_path: Path) -> None:
    assert oracle_table(STUDY) == ""
    files = write_study(tmp_path, STUDY)
    assert "no mini world" in files.markdown.read_text()
    assert [entry["accuracy"]["M_1"] for entry in json.loads(files.json.read_text())] == [0.5, 0.325, 0.275, 0.32]

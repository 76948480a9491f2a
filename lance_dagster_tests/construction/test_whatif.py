"""What-if: other thresholds on a ledger that is there."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lance_dagster.construction.filters.pool import extended_index
from lance_dagster.construction.whatif import NEVER_REVIEWED, as_text, what_if
from lance_dagster.errors import ArtifactError
from lance_dagster_tests.construction.scripted import HIGH, LOW, Bench, bench, cut, seed


def varied(folder: Path, iteration: int = 0, **filters: Any) -> Bench:
    """A step whose model writes texts that are more or less alike, of more or less worth."""
    rng = random.Random(iteration)
    words = [f"w{i}" for i in range(30)]

    def texts(count: int) -> list[Any]:
        made: list[Any] = []
        for _ in range(count):
            base = rng.choice(made).split()[:12] if made and rng.random() < 0.5 else rng.choices(words, k=12)
            base[rng.randrange(len(base))] = rng.choice(words)
            made.append(" ".join(base))
        return made

    def worthy(count: int) -> list[Any]:
        worths = rng.choices(["1", "6", "7", "8", "9", "10", "none"], k=count)
        return [cut("Never ended"), *(f"{text} worth {w}" for text, w in zip(texts(count), worths, strict=True))]

    return bench(
        folder,
        iteration=iteration,
        instructions=texts(24),
        responses=worthy(140),
        flawed=worthy(24),
        construction={"samples": 6, "max_rows_per_seed": 20, "filters": {"keywords": ["w29"], **filters}},
    )


SEEDS = (LOW, seed("sea", "2"), seed("sky", "1"), HIGH, seed("sun", "8"))


@pytest.mark.parametrize("scope", ["seed", "iteration", "all"])
@pytest.mark.parametrize("statistic", ["f", "any", "union_lcs"])
def test_the_thresholds_of_the_settings_give_the_ledger_as_it_is(tmp_path: Path, scope: str, statistic: str) -> None:
    made = varied(tmp_path, rouge_scope=scope, rouge_statistic=statistic)
    reviewed, rows = made.tables(*SEEDS)
    construction = made.context.settings.construction
    (outcome,) = what_if(rows, reviewed, construction, [0.7], [8.0])
    fates = zip(rows["kind"].to_pylist(), rows["drop_reason"].to_pylist(), strict=True)
    assert outcome.counts == Counter((kind, reason or "kept") for kind, reason in fates)
    assert outcome.counts.total() == rows.num_rows
    assert outcome.count("instruction", "similar") > 0


@pytest.mark.parametrize("rouge", [0.4, 0.5, 0.6, 0.7])
@pytest.mark.parametrize("accept", [6.0, 8.0, 9.0])
def test_stricter_thresholds_give_the_ledger_that_they_would_have_made(
    tmp_path: Path, rouge: float, accept: float
) -> None:
    made = varied(tmp_path / "wide", rouge_scope="iteration")
    reviewed, rows = made.tables(*SEEDS)
    (outcome,) = what_if(rows, reviewed, made.context.settings.construction, [rouge], [accept])
    instructions = [row for row in rows.to_pylist() if row["kind"] == "instruction"]
    asked = varied(tmp_path / "strict", rouge_scope="iteration", rouge_threshold=rouge, rouge_recorded_above=0.0)
    strict = asked.tables(*SEEDS)[1].to_pylist()
    kept = [row for row in strict if row["kind"] == "instruction" and row["kept"]]
    assert len([row for row in strict if row["kind"] == "instruction"]) == len(instructions)
    assert outcome.count("instruction", "kept") == len(kept)
    own = [row for row in rows.to_pylist() if row["kind"] == "response" and row["stage"] in ("reward", "acceptance")]
    high = sum(row["score"] is not None and row["score"] > accept for row in own)
    assert outcome.count("response", "kept") <= high
    assert outcome.counts.total() == rows.num_rows
    assert outcome.count("response", NEVER_REVIEWED) == 0, "a stricter threshold only drops"


def test_rows_that_a_looser_threshold_lets_pass_were_never_reviewed(tmp_path: Path) -> None:
    made = varied(tmp_path, rouge_scope="iteration", rouge_threshold=0.5)
    reviewed, rows = made.tables(*SEEDS)
    asked = len(made.engine.requests)
    before, after = what_if(rows, reviewed, made.context.settings.construction, [0.5, 0.9], [8.0])
    assert len(made.engine.requests) == asked, "no model is asked"
    assert before.count("response", NEVER_REVIEWED) == 0
    assert after.count("response", NEVER_REVIEWED) > 0
    assert after.count("instruction", "kept") > before.count("instruction", "kept")
    assert after.counts.total() == before.counts.total() == rows.num_rows


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    reviewed, rows = varied(tmp_path).tables(*SEEDS)
    place = rows.schema.get_field_index("stage")
    old = rows.set_column(place, "stage", pa.array(["length"] * rows.num_rows))
    with pytest.raises(ArtifactError, match=r"stage length.*re-materialise candidate_ledger"):
        what_if(old, reviewed, varied(tmp_path).context.settings.construction, [0.7], [8.0])


def test_a_lower_acceptance_score_keeps_more_responses(tmp_path: Path) -> None:
    made = varied(tmp_path)
    reviewed, rows = made.tables(*SEEDS)
    outcomes = what_if(rows, reviewed, made.context.settings.construction, [0.7], [9.0, 8.0, 6.5, 0.0])
    kept = [outcome.count("response", "kept") for outcome in outcomes]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


def test_with_the_scope_all_the_earlier_index_counts(tmp_path: Path) -> None:
    first = varied(tmp_path / "0", rouge_scope="all")
    index = extended_index(None, first.tables(*SEEDS)[1], first.context.settings.construction.filters)
    later = varied(tmp_path / "1", iteration=1, rouge_scope="all")
    reviewed, ledger = later.made(*SEEDS, earlier=index)
    construction = later.context.settings.construction
    (with_index,) = what_if(ledger.rows, reviewed, construction, [0.7], [8.0], index)
    fates = zip(ledger.rows["kind"].to_pylist(), ledger.rows["drop_reason"].to_pylist(), strict=True)
    assert with_index.counts == Counter((kind, reason or "kept") for kind, reason in fates)


def test_the_text_has_a_line_per_setting_and_marks_that_of_the_settings(tmp_path: Path) -> None:
    made = varied(tmp_path)
    reviewed, rows = made.tables(*SEEDS)
    construction = made.context.settings.construction
    lines = as_text(what_if(rows, reviewed, construction, [0.6, 0.7], [7.0, 8.0]), construction).splitlines()
    assert lines[0].split()[:2] == ["rouge", "accept"]
    assert [line.split()[:2] for line in lines[1:4]] == [["0.6", "7"], ["0.6", "8"], ["0.7", "7"]]
    assert lines[4].split()[:3] == ["*", "0.7", "8"]
    assert len({len(line) for line in lines}) == 1

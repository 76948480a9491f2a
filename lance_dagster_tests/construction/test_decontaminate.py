"""Seed rows that the evaluation asks."""

import json
from pathlib import Path

import pytest

from lance_dagster.construction.filters.contamination import EvaluationIndex
from lance_dagster.construction.seeds.decontaminate import decontaminate
from lance_dagster.construction.seeds.load import SeedLoad, load_seed_instructions, load_seed_reviews
from lance_dagster.construction.seeds.quarantine import REASONS
from lance_dagster.errors import SeedError
from lance_dagster.records import CONTAMINATION_HITS
from lance_dagster.settings import SeedSettings
from lance_dagster_tests.construction.scripted import evaluation_of
from lance_dagster_tests.shared_data import shared_data

SETTINGS = SeedSettings(instructions="seed.jsonl", reviews="seed.jsonl")
LONG = "the first of all lakes that anyone ever measured was deeper than it looked"
ROWS = [
    {"instruction": "Name a lake.", "response": "Garda."},
    {"instruction": "What is 1 + 1?", "response": "2"},
    {"instruction": "Tell me a story.", "response": f"Once, {LONG}, and so on."},
]


def loaded(folder: Path, rows: list[dict[str, str]]) -> SeedLoad:
    (folder / "seed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_seed_instructions("seed.jsonl", SETTINGS, folder)


def test_rows_that_the_evaluation_asks_go_to_the_quarantine_with_the_document(tmp_path: Path) -> None:
    clean, hits = decontaminate(loaded(tmp_path, ROWS), evaluation_of(["what is 1+1", LONG]), drop=True)
    assert clean.rows["instruction"].to_pylist() == ["Name a lake."]
    assert [(row["position"], row["reason"]) for row in clean.quarantine.to_pylist()] == [
        (1, "contaminated"),
        (2, "contaminated"),
    ]
    assert "document 1 of exam" in clean.quarantine["detail"][1].as_py()
    assert clean.counts["kept"] + sum(clean.counts[reason] for reason in REASONS) == clean.counts["read"] == 3
    assert hits.schema.equals(CONTAMINATION_HITS)
    assert [(row["origin"], row["part"], row["whole"]) for row in hits.to_pylist()] == [
        ("seed", "instruction", True),
        ("seed", "response", False),
    ]


def test_flagged_rows_stay(tmp_path: Path) -> None:
    load = loaded(tmp_path, ROWS)
    flagged, hits = decontaminate(load, evaluation_of(["what is 1+1"]), drop=False)
    assert flagged is load
    assert hits.num_rows == 1


@pytest.mark.parametrize("evaluation", [EvaluationIndex(), evaluation_of(["Name a river."])])
def test_a_clean_seed_stays_as_it_is(tmp_path: Path, evaluation: EvaluationIndex) -> None:
    load = loaded(tmp_path, ROWS)
    clean, hits = decontaminate(load, evaluation, drop=True)
    assert clean is load
    assert hits.num_rows == 0


def test_a_seed_of_nothing_but_evaluation_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SeedError, match=r"all 1 good seed rows.*document 0 of exam.*'flag'"):
        decontaminate(loaded(tmp_path, ROWS[:1]), evaluation_of(["Name a lake!"]), drop=True)


def test_reviews_are_looked_up_too(tmp_path: Path) -> None:
    rows = [{**row, "rationale": "It is so.", "score": 9} for row in ROWS]
    (tmp_path / "seed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clean, hits = decontaminate(
        load_seed_reviews("seed.jsonl", SETTINGS, tmp_path), evaluation_of(["Name a lake."]), drop=True
    )
    assert clean.rows.num_rows == 2
    assert hits["row_id"].to_pylist() != clean.rows["seed_id"].to_pylist()[:1]


def test_gsm8k_test_questions_are_taken_out_of_a_seed_that_holds_them() -> None:
    path = shared_data("gsm8k_test.jsonl")
    questions = [json.loads(line)["question"] for line in path.read_text("utf-8").splitlines()]
    load = load_seed_instructions(path.name, SETTINGS, path.parent)
    clean, hits = decontaminate(load, evaluation_of(questions[:300]), drop=True)
    assert hits.num_rows >= 300
    assert not set(questions[:300]) & set(clean.rows["instruction"].to_pylist())
    assert clean.rows.num_rows > 950

from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pytest
from upath import UPath

from lance_dagster.construction.review import branch_of, review_seed
from lance_dagster.engines.engine import Completion, GenerationRequest, failed
from lance_dagster.records import REVIEWED_SEED
from lance_dagster.storage.tables import read_table, write_table
from lance_dagster_tests.construction.scripted import PROMPT_SETS, Row, bench, seed, settings


def only(table: pa.Table) -> Row:
    (row,) = table.to_pylist()
    return dict(row)


def branch(score: float | None, **construction: Any) -> str:
    return branch_of(score, settings(construction=construction).construction)


@pytest.mark.parametrize("prompts", PROMPT_SETS)
def test_the_score_is_the_mean_of_the_reviews_that_parse(tmp_path: Path, prompts: str) -> None:
    row = only(bench(tmp_path, prompts).review(seed("ice", "6|none|9")))
    assert row["scores"] == [6.0, None, 9.0]
    assert row["score"] == 7.5
    assert row["rationales"] == ["It is as it is.", "I would rather not say.", "It is as it is."]
    assert row["branch"] == "preference"


@pytest.mark.parametrize("prompts", PROMPT_SETS)
def test_a_review_that_was_cut_off_is_missing_even_where_its_text_holds_a_score(tmp_path: Path, prompts: str) -> None:
    row = only(bench(tmp_path, prompts).review(seed("ice", "cut|4|5")))
    assert row["scores"] == [None, 4.0, 5.0]
    assert row["score"] == 4.5
    assert row["review_finish_reasons"] == ["length", "stop", "stop"]


@pytest.mark.parametrize("worth", ["none", "cut"])
def test_a_seed_without_any_parsed_review_has_no_score_and_takes_no_branch(tmp_path: Path, worth: str) -> None:
    row = only(bench(tmp_path).review(seed("ice", worth)))
    assert row["scores"] == [None, None, None]
    assert row["score"] is None
    assert row["branch"] == "none"


def test_unreviewed_seeds_can_be_sent_to_the_low_branch(tmp_path: Path) -> None:
    unreviewed = bench(tmp_path, construction={"unreviewed_seeds": "instruction"}).review(seed("ice", "none"))
    assert only(unreviewed)["branch"] == "instruction"
    assert only(unreviewed)["score"] is None


def test_a_score_of_zero_is_a_score(tmp_path: Path) -> None:
    row = only(bench(tmp_path).review(seed("ice", "0|none|0")))
    assert (row["score"], row["branch"]) == (0.0, "instruction")


def test_missing_scores_survive_the_parquet_file(tmp_path: Path) -> None:
    table = bench(tmp_path).review(seed("ice", "none|3|none"), seed("fire", "none"))
    path = UPath(tmp_path / "reviewed_seed.parquet")
    write_table(path, table)
    assert read_table(path).equals(table)
    assert read_table(path)["scores"].to_pylist() == [[None, 3.0, None], [None, None, None]]


@pytest.mark.parametrize(("switch", "expected"), [("preference", "preference"), ("instruction", "instruction")])
def test_a_score_equal_to_v_follows_the_switch(switch: str, expected: str) -> None:
    assert branch(7.0, branch_at_threshold=switch) == expected
    assert branch(6.99, branch_at_threshold=switch) == "instruction"
    assert branch(7.01, branch_at_threshold=switch) == "preference"


def test_a_mean_that_equals_v_but_for_rounding_follows_the_switch_too() -> None:
    mean = fmean([7.1, 7.1, 7.1])
    assert mean != 7.1
    assert branch(mean, threshold=7.1, branch_at_threshold="preference") == "preference"
    assert branch(mean, threshold=7.1, branch_at_threshold="instruction") == "instruction"


@pytest.mark.parametrize("times", [1, 5])
def test_each_pair_is_reviewed_as_often_as_asked_with_a_seed_of_its_own(tmp_path: Path, times: int) -> None:
    made = bench(tmp_path, construction={"reviews_per_item": times})
    table = made.review(seed("ice"), seed("fire"))
    assert [len(scores) for scores in table["scores"].to_pylist()] == [times, times]
    assert len({request.seed for request in made.engine.requests}) == 2 * times


def test_without_rereview_the_score_and_its_author_stay_and_the_branch_is_recomputed(tmp_path: Path) -> None:
    old, new = seed("ice", "6.5"), seed("fire", "3")
    first = bench(tmp_path).review(old)
    assert only(first)["branch"] == "instruction"
    later = bench(tmp_path, iteration=1, construction={"threshold": 6.0})
    table = review_seed(later.context, [old, new], first)
    kept, added = table.to_pylist()
    assert (kept["score"], kept["model_digest"], kept["iteration"]) == (6.5, "model_0", 0)
    assert kept["branch"] == "preference"
    assert (added["score"], added["model_digest"], added["iteration"]) == (3.0, "model_1", 1)
    assert len(later.engine.requests) == 3, "only the new seed was reviewed"


def test_with_rereview_the_current_model_scores_every_seed_again(tmp_path: Path) -> None:
    bench(tmp_path).review(seed("ice"))
    later = bench(tmp_path, iteration=1)
    assert only(later.review(seed("ice")))["model_digest"] == "model_1"
    assert len(later.engine.requests) == 3


def test_a_changed_threshold_moves_seeds_without_reviewing_them_again(tmp_path: Path) -> None:
    low = bench(tmp_path).review(seed("ice", "6.5"))
    again = bench(tmp_path, construction={"threshold": 6.0})
    assert (only(low)["branch"], only(again.review(seed("ice", "6.5")))["branch"]) == ("instruction", "preference")
    assert again.engine.requests == []


@pytest.mark.parametrize("prompts", PROMPT_SETS)
def test_the_texts_reach_the_reviewer_as_they_are(tmp_path: Path, prompts: str) -> None:
    made = bench(tmp_path, prompts)
    row = {**seed("ice"), "instruction": "{{ 1 + 1 }} «日本» 😀\n\tline", "response": "<b>None</b> {% raw %} worth 9"}
    made.review(row)
    prompt = made.engine.requests[0].messages[-1]["content"]
    assert row["instruction"] in prompt
    assert row["response"] in prompt


def test_no_seed_gives_an_empty_table_and_loads_no_model(tmp_path: Path) -> None:
    made = bench(tmp_path)
    table = made.review()
    assert table.num_rows == 0
    assert table.schema.equals(REVIEWED_SEED)
    assert made.engine.requests == []


def test_a_failed_review_is_missing_and_says_so(tmp_path: Path) -> None:
    step = bench(tmp_path, construction={"reviews_per_item": 3}, engine={"max_failed_share": 0.5})
    answer = step.engine._answer

    def first_fails(request: GenerationRequest) -> Completion | str:
        return answer(request) if step.engine.requests else failed("timeout", "no answer", 5, 4)

    step.engine._answer = first_fails
    row = only(step.review(seed("lions", worth="6")))
    assert row["scores"] == [None, 6.0, 6.0] and row["score"] == 6.0
    assert row["review_finish_reasons"] == ["error", "stop", "stop"]

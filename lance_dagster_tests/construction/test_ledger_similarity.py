import random
from pathlib import Path

import pyarrow as pa
import pytest

from lance_dagster.construction.filters.pool import extended_index
from lance_dagster.errors import ArtifactError
from lance_dagster.storage.tables import table_digest
from lance_dagster_tests.construction.scripted import (
    FLAWED,
    HIGH,
    INSTRUCTION,
    LOW,
    OPEN,
    RESPONSE,
    bench,
    fates,
    filters,
    of_kind,
    seed,
    unlike,
)

# Within an iteration


def test_exact_repetitions_go_even_where_responses_are_not_compared(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        responses=["Yes, worth 9", "Yes,  worth\t9\n", "Yes, all of it, worth 9", "Yes, all of it, worth 9"],
        construction={**filters(rouge_responses=False), "samples": 4, "responses_per_instruction": 4},
    ).ledger(LOW)
    assert fates(rows, RESPONSE)[:4] == [None, "duplicate", None, "duplicate"]
    assert of_kind(rows, RESPONSE)[2]["rouge_l"] is None


def test_the_same_response_to_two_instructions_is_no_repetition(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        instructions=["Is water wet?", "Does it rain in autumn?"],
        responses=["Yes, worth 9", "Yes, worth 9"],
        construction={"responses_per_instruction": 1},
    ).ledger(LOW)
    assert fates(rows, RESPONSE) == [None, None]


def test_a_response_to_a_new_instruction_may_be_that_of_the_seed(tmp_path: Path) -> None:
    rows = bench(tmp_path, responses=[LOW["response"]], construction=filters(rouge_responses=False)).ledger(LOW)
    assert fates(rows, RESPONSE)[0] == "below_acceptance", "it was reviewed, which a repetition is not"


@pytest.mark.parametrize("text", [HIGH["response"], HIGH["response"].replace(" ", "\n  ")])
@pytest.mark.parametrize("compare", [True, False])
def test_a_flawed_response_that_repeats_the_original_is_dropped(tmp_path: Path, text: str, compare: bool) -> None:
    rows = bench(tmp_path, flawed=[text, "Not so. worth 1"], construction=filters(rouge_responses=compare)).ledger(HIGH)
    assert fates(rows, FLAWED) == ["duplicate", None]


def test_a_new_instruction_that_repeats_its_seed_is_dropped(tmp_path: Path) -> None:
    rows = bench(
        tmp_path, instructions=[f" {LOW['instruction']} ", "Name a lake."], construction=filters(**OPEN)
    ).ledger(LOW)
    assert fates(rows, INSTRUCTION) == ["duplicate", None]


def test_of_two_similar_rows_the_first_stays_and_the_other_names_it(tmp_path: Path) -> None:
    one, two = unlike(1, 10), unlike(1, 9)
    rows = bench(tmp_path, instructions=[one, two]).ledger(LOW)
    first, second = of_kind(rows, INSTRUCTION)
    assert (first["drop_reason"], second["drop_reason"]) == (None, "similar")
    assert second["rouge_l"] == pytest.approx(2 * 9 / 19)
    assert second["rouge_l_against"] == first["row_id"]


def test_a_similarity_equal_to_the_threshold_is_kept(tmp_path: Path) -> None:
    half = f"{unlike(1, 2)} {unlike(2, 2)}"
    rows = bench(
        tmp_path, instructions=[unlike(1, 4), half], construction=filters(rouge_threshold=0.5, rouge_recorded_above=0.4)
    ).ledger(LOW)
    assert of_kind(rows, INSTRUCTION)[1]["rouge_l"] == 0.5
    assert fates(rows, INSTRUCTION) == [None, None]


def test_a_dropped_row_is_not_what_later_rows_are_compared_with(tmp_path: Path) -> None:
    first, middle, last = "a b c d e f", "c d e f g h", "e f g h i j"
    rows = bench(
        tmp_path,
        instructions=[first, middle, last],
        construction={**filters(rouge_threshold=0.6), "samples": 3},
    ).ledger(LOW)
    assert fates(rows, INSTRUCTION) == [None, "similar", None]


@pytest.mark.parametrize(
    ("scope", "expected"), [("seed", [None] * 4), ("iteration", [None, None, "duplicate", "similar"])]
)
def test_the_scope_decides_whether_the_rows_of_another_seed_count(
    tmp_path: Path, scope: str, expected: list[str | None]
) -> None:
    rows = bench(
        tmp_path,
        instructions=[unlike(1), unlike(2), unlike(1), f"{unlike(2)} too"],
        construction=filters(rouge_scope=scope),
    ).ledger(LOW, seed("sea", "2"))
    assert fates(rows, INSTRUCTION) == expected


def test_the_statistic_any_drops_a_short_excerpt_that_f_keeps(tmp_path: Path) -> None:
    whole = {**seed("fire"), "response": f"{unlike(1, 30)} worth 9"}
    excerpt = f"{unlike(1, 6)} worth 1"
    made = {
        statistic: bench(
            tmp_path / statistic, flawed=[excerpt, "Not so. worth 2"], construction=filters(rouge_statistic=statistic)
        ).ledger(whole)
        for statistic in ("f", "any")
    }
    assert fates(made["f"], FLAWED)[0] is None
    assert fates(made["any"], FLAWED)[0] == "similar"


def test_text_without_latin_words_is_compared_for_repetition_only(tmp_path: Path) -> None:
    rows = bench(
        tmp_path,
        instructions=["请介绍一条河流。", "请介绍一座山。", "请介绍一条河流。", "说明 ¿?…"],
        construction={"samples": 4},
    ).ledger(LOW)
    assert fates(rows, INSTRUCTION) == [None, None, "duplicate", None]
    assert of_kind(rows, INSTRUCTION)[1]["rouge_l"] is None
    assert of_kind(rows, INSTRUCTION)[1]["rouge_l_against"] is None


@pytest.mark.parametrize(("duplicates", "fate"), [("exact", None), ("normalised", "duplicate")])
def test_texts_that_differ_in_case_and_punctuation_repeat_each_other_if_so_set(
    tmp_path: Path, duplicates: str, fate: str | None
) -> None:
    rows = bench(
        tmp_path,
        responses=["Yes, it is. worth 9", "yes it is worth 9"],
        construction=filters(duplicates=duplicates, rouge_responses=False),
    ).ledger(LOW)
    assert fates(rows, RESPONSE)[:2] == [None, fate]


def test_texts_that_the_words_of_rouge_score_overlook_are_counted(tmp_path: Path) -> None:
    def unseen(words: str) -> int:
        made = bench(
            tmp_path / words, instructions=["请介绍一条河流。", "Name a lake."], construction=filters(rouge_words=words)
        )
        return made.made(LOW)[1].unseen

    assert (unseen("rouge_score"), unseen("unicode")) == (1, 0)


# All iterations


def kept_instructions(made: pa.Table) -> list[str]:
    return [row["instruction"] for row in made.to_pylist() if row["kind"] == "instruction" and row["kept"]]


def test_with_the_scope_all_an_instruction_of_an_earlier_iteration_counts(tmp_path: Path) -> None:
    scope = filters(rouge_scope="all")
    first = bench(tmp_path / "0", instructions=[unlike(1), unlike(2)], construction=scope)
    _, before = first.made(LOW)
    chosen = first.context.settings.construction.filters
    index = extended_index(None, before.rows, chosen)
    later = bench(
        tmp_path / "1",
        iteration=1,
        instructions=[unlike(1), f"{unlike(2)} too", unlike(3), "Tell me about more sea."],
        construction={**scope, "samples": 2},
    )
    _, ledger = later.made(LOW, seed("sea", "2"), earlier=index)
    assert fates(ledger.rows.to_pylist(), INSTRUCTION) == ["duplicate", "similar", None, "similar"]
    assert of_kind(ledger.rows.to_pylist(), INSTRUCTION)[1]["rouge_l_against"] == index["row_id"][1].as_py()
    grown = extended_index(index, ledger.rows, chosen)
    assert grown.num_rows == index.num_rows + 1
    assert grown["iteration"].to_pylist() == [0, 0, 1]
    assert table_digest(grown) != table_digest(index), "the next iteration names it by its digest"


def test_with_the_scope_all_a_flawed_response_is_compared_with_those_of_earlier_iterations(tmp_path: Path) -> None:
    scope = filters(rouge_scope="all")
    first = bench(tmp_path / "0", flawed=[f"{unlike(1)} worth 1", f"{unlike(2)} worth 1"], construction=scope)
    _, before = first.made(HIGH, seed("sun", "9"))
    index = extended_index(None, before.rows, first.context.settings.construction.filters)
    assert set(index["kind"].to_pylist()) == {"flawed_response"}
    later = bench(
        tmp_path / "1", iteration=1, flawed=[f"{unlike(1)} worth 1", f"{unlike(9)} worth 1"], construction=scope
    )
    _, ledger = later.made(HIGH, earlier=index)
    assert fates(ledger.rows.to_pylist(), FLAWED) == ["duplicate", None]


def test_the_index_gives_the_decisions_that_all_texts_at_once_would_give(tmp_path: Path) -> None:
    rng = random.Random(4)
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(rng.choice(words) for _ in range(8)) for _ in range(12)]
    texts += [f"{rng.choice(texts)} more" for _ in range(20)]
    rng.shuffle(texts)
    scope = {**filters(rouge_scope="all", rouge_threshold=0.6), "samples": 8}
    whole = bench(tmp_path / "whole", instructions=texts, construction={**scope, "samples": 32}).made(LOW)[1].rows
    index, apart = None, []
    for i in range(4):
        part = bench(tmp_path / str(i), iteration=i, instructions=texts[8 * i : 8 * i + 8], construction=scope)
        rows = part.made(LOW, earlier=index)[1].rows
        apart += kept_instructions(rows)
        index = extended_index(index, rows, part.context.settings.construction.filters)
    assert apart == kept_instructions(whole)
    assert 2 < len(apart) < 30


def test_an_index_of_other_words_is_refused(tmp_path: Path) -> None:
    first = bench(tmp_path / "0", instructions=[unlike(1), unlike(2)])
    index = extended_index(None, first.made(LOW)[1].rows, first.context.settings.construction.filters)
    later = bench(tmp_path / "1", iteration=1, construction=filters(rouge_scope="all", rouge_words="unicode"))
    with pytest.raises(ArtifactError, match=r"rouge_score words.*unicode words.*re-materialise candidate_ledger"):
        later.made(LOW, earlier=index)

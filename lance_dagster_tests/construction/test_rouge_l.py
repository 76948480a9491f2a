"""The similarity statistics and the join, against the packages that define ROUGE-L."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from lance_dagster.construction.filters import shelves, similarity_join
from lance_dagster.construction.filters.candidate_pairs import Bound, Index
from lance_dagster.construction.filters.rouge_l import Floats, Pairs, Statistic, similarities, tokens_of
from lance_dagster.construction.filters.shelves import Comparison, Flags
from lance_dagster.construction.filters.similarity_join import (
    NOBODY,
    SimilarityJoin,
    Verdicts,
    keep_first_by_group,
)
from lance_dagster.construction.filters.words import Ints, TokenRule, Vocabulary, WordRows, split_words
from lance_dagster_tests.shared_data import shared_data

STATISTICS: tuple[Statistic, ...] = ("f", "any", "union_lcs")
RULES: tuple[TokenRule, ...] = ("rouge_score", "unicode")
ODD = [
    "",
    " \n\t ",
    "?!… ---",
    ". . .",
    "word",
    "Word, word; WORD.",
    "the cat the cat. the cat the",
    "cat the cat the cat",
    "请介绍一条河流。",
    "请介绍 10 条河流。",
    "ฉันรักภาษาไทย",
    "שלום עולם 12",
    "مرحبا بالعالم",
    "😀 smile 😀",
    "naïve café naïve",
    "İstanbul K ſ",
    "x\x00y z\ufeff",
    "a\ud800b \udfff",
    "1 22 333 22 1",
    "snake_case and camelCase and kebab-case",
]


class ByRule(Tokenizer):  # type: ignore[misc]
    """Words under a rule of ours, for the package's own arithmetic."""

    def __init__(self, rule: TokenRule) -> None:
        self._rule = rule

    def tokenize(self, text: str) -> list[str]:
        return split_words(text, self._rule)


SCORERS = {"rouge_score": RougeScorer(["rougeL"]), "unicode": RougeScorer(["rougeL"], tokenizer=ByRule("unicode"))}
UNION = Rouge(metrics=["rouge-l"])


def reference(earlier: str, text: str, statistic: Statistic, rule: TokenRule = "rouge_score") -> float:
    """What the package says that defines the statistic; 0 where it refuses a text without a word."""
    if statistic == "union_lcs":
        if not earlier.replace(".", "") or not text.replace(".", ""):
            return 0.0
        return max(UNION.get_scores(text, earlier)[0]["rouge-l"].values())
    score = SCORERS[rule].score(earlier, text)["rougeL"]
    return float(score.fmeasure if statistic == "f" else max(score))


def naive(
    texts: Sequence[str], threshold: float, statistic: Statistic, rule: TokenRule = "rouge_score", pool: int = 0
) -> list[bool]:
    """Self-Instruct's loop, with the package: keep a row unless a kept one before it is more similar."""
    kept: list[bool] = []
    for i, text in enumerate(texts):
        similar = (reference(texts[j], text, statistic, rule) > threshold for j in range(i) if kept[j])
        kept.append(i < pool or not any(similar))
    return kept[pool:]


def numbered(texts: Sequence[str], statistic: Statistic, rule: TokenRule = "rouge_score") -> WordRows:
    return WordRows.of(texts, tokens_of(statistic, rule), Vocabulary())


def joined(
    texts: Sequence[str],
    threshold: float,
    statistic: Statistic = "f",
    rule: TokenRule = "rouge_score",
    *,
    floor: float | None = None,
    pool: int = 0,
) -> Single:
    """The verdicts on the rows behind the pool, which are numbered as in ``texts``."""
    comparison = Comparison(statistic, (threshold,), threshold if floor is None else floor)
    return Single.of(decided(comparison, numbered(texts, statistic, rule), pool))


def decided(comparison: Comparison, rows: WordRows, pool: int) -> Verdicts:
    join, everyone = SimilarityJoin(comparison), np.arange(len(rows))
    join.add(rows.take(everyone[:pool]), everyone[:pool])
    return join.keep_first(rows, everyone[pool:], everyone[pool:])


class Single(NamedTuple):
    """Verdicts under one threshold."""

    kept: Flags
    value: Floats
    against: Ints

    @classmethod
    def of(cls, verdicts: Verdicts) -> Single:
        (kept,), (value,), (against,) = verdicts.kept, verdicts.value, verdicts.against
        return cls(kept, value, against)


def similarity(earlier: str, text: str, statistic: Statistic, rule: TokenRule = "rouge_score") -> float:
    rows = numbered([earlier, text], statistic, rule)
    return float(similarities(rows, rows, Pairs(np.array([1]), np.array([0])), statistic)[0])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, leaves and shelves so small that a few rows go through all of them."""
    for name, value in {"_BLOCK": 8, "_LEAF": 2, "_MERGED": 3, "_SMALL_GROUP": 4, "_GROUP_PAIRS": 9}.items():
        monkeypatch.setattr(similarity_join, name, value)


# The statistics

ANY_TEXT = st.text(max_size=60)
CLOSE_TEXT = st.lists(st.sampled_from(["a", "b", "c", "B.", ".", "10", "é", "语"]), max_size=14).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(earlier=ANY_TEXT | CLOSE_TEXT, text=ANY_TEXT | CLOSE_TEXT)
def test_similarities_are_exactly_those_of_the_packages(earlier: str, text: str) -> None:
    for statistic in STATISTICS:
        assert similarity(earlier, text, statistic) == reference(earlier, text, statistic)
    for statistic in ("f", "any"):
        assert similarity(earlier, text, statistic, "unicode") == reference(earlier, text, statistic, "unicode")


@pytest.mark.parametrize("statistic", STATISTICS)
def test_odd_texts_are_as_similar_as_the_packages_say(statistic: Statistic) -> None:
    for earlier, text in product(ODD, ODD):
        assert similarity(earlier, text, statistic) == reference(earlier, text, statistic), (earlier, text)


@pytest.mark.parametrize("statistic", ["f", "any"])
def test_texts_of_two_thousand_words_are_as_similar_as_rouge_score_says(statistic: Statistic) -> None:
    rng = random.Random(0)
    earlier = [f"w{rng.randrange(300)}" for _ in range(2000)]
    text = " ".join(word for word in earlier if rng.random() < 0.8)
    assert similarity(" ".join(earlier), text, statistic) == reference(" ".join(earlier), text, statistic)


def test_the_union_statistic_has_a_value_where_its_package_gives_up() -> None:
    one = " ".join(f"w{i % 700}" for i in range(9000))  # far beyond the recursion limit, if it were recursive
    assert similarity(one, one + " more", "union_lcs") == 1.0
    with pytest.raises(ValueError, match="at least 1 sentence"):
        UNION.get_scores("...", "a b")
    assert similarity("...", "a b", "union_lcs") == 0.0


def test_the_union_statistic_drops_a_short_excerpt_that_f_keeps() -> None:
    whole = " ".join(f"w{i}" for i in range(60))
    excerpt = " ".join(f"w{i}" for i in range(0, 60, 5))
    assert similarity(whole, excerpt, "union_lcs") == 1.0
    assert similarity(whole, excerpt, "f") == pytest.approx(2 * 12 / 72)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_hundred_thousand_words_are_compared(statistic: Statistic) -> None:
    text = " ".join(f"w{i % 5000}" for i in range(100_000))
    shorter = " ".join(text.split()[:99_000])
    assert similarity(text, shorter, statistic) > 0.9


# Words


def test_unicode_words_are_those_of_rouge_score_where_letters_are_ascii() -> None:
    for text in ("What's 12+7? snake_case, E-mail!", "A B\tc\n10%", ""):
        assert split_words(text, "unicode") == split_words(text, "rouge_score")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("请介绍 10 条河流。", ["请", "介", "绍", "10", "条", "河", "流"]),
        ("日本のカメラ", ["日", "本", "の", "カ", "メ", "ラ"]),
        ("ภาษาไทย", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"]),
        ("น้ำ", ["น้", "ำ"]),
        ("naïve cafe\u0301", ["naïve", "café"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("שלום, עולם!", ["שלום", "עולם"]),
        ("Привет мир", ["привет", "мир"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("😀 ok 😀", ["ok"]),
        ("a\ud800b", ["a", "b"]),
    ],
)
def test_unicode_words(text: str, words: list[str]) -> None:
    assert split_words(text, "unicode") == words


@given(st.text())
def test_words_of_rouge_score_are_those_of_its_tokeniser(text: str) -> None:
    assert split_words(text, "rouge_score") == SCORERS["rouge_score"]._tokenizer.tokenize(text)


@given(st.text())
def test_unicode_words_cover_all_letters_and_digits(text: str) -> None:
    joined_words = "".join(split_words(text, "unicode"))
    assert not re.search(r"[\s.,!?_]", joined_words)
    assert all(c in joined_words for c in text.lower() if c.isascii() and c.isalnum())


def test_chinese_sentences_are_told_apart_by_the_unicode_rule() -> None:
    rivers, mountains, asked_again = "请介绍一条河流。", "请说明山的高度。", "请介绍一条大河流。"
    assert joined([rivers, mountains, asked_again], 0.7, rule="unicode").kept.tolist() == [True, True, False]
    assert joined([rivers, mountains, asked_again], 0.7).value.tolist() == [0.0, 0.0, 0.0]


# The join

ROWS = st.lists(CLOSE_TEXT | ANY_TEXT, max_size=14)


@settings(max_examples=120, deadline=None)
@given(texts=ROWS, threshold=st.sampled_from([0.2, 0.5, 0.6, 2 / 3, 0.7, 0.9, 1.0]), pool=st.integers(0, 5))
def test_the_join_decides_as_the_packages_do_row_by_row(texts: list[str], threshold: float, pool: int) -> None:
    pool = min(pool, len(texts))
    for statistic in STATISTICS:
        verdicts = joined(texts, threshold, statistic, pool=pool)
        assert verdicts.kept.tolist() == naive(texts, threshold, statistic, pool=pool)
    assert joined(texts, threshold, "f", "unicode").kept.tolist() == naive(texts, threshold, "f", "unicode")


def planted(rng: random.Random, rows: int, vocabulary: int, longest: int) -> list[str]:
    """Random texts, a third of them with changes of earlier ones."""
    texts: list[str] = []
    for _ in range(rows):
        if texts and rng.random() < 0.35:
            words = rng.choice(texts).split() or ["w"]
            for _ in range(rng.randrange(5)):
                words[rng.randrange(len(words))] = f"w{rng.randrange(vocabulary)}"
            texts.append(" ".join(words))
        else:
            texts.append(" ".join(f"w{rng.randrange(vocabulary)}" for _ in range(rng.randrange(longest))))
    return texts


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("vocabulary", [3, 30, 400])
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_decisions_do_not_depend_on_blocks_and_shelves(statistic: Statistic, vocabulary: int, threshold: float) -> None:
    texts = planted(random.Random(vocabulary), 60, vocabulary, 40)
    verdicts = joined(texts, threshold, statistic, floor=threshold / 2, pool=11)
    assert verdicts.kept.tolist() == naive(texts, threshold, statistic, pool=11)
    for i, (value, number) in enumerate(zip(verdicts.value, verdicts.against, strict=True), start=11):
        kept = [j for j in range(i) if j < 11 or verdicts.kept[j - 11]]
        values = [reference(texts[j], texts[i], statistic) for j in kept]
        highest = max(values)
        assert value == (highest if highest > threshold / 2 else 0.0)
        assert number == (kept[values.index(highest)] if highest > threshold / 2 else NOBODY)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("statistic", STATISTICS)
def test_under_several_thresholds_at_once_rows_are_decided_on_as_under_each(statistic: Statistic) -> None:
    texts, thresholds = planted(random.Random(8), 90, 30, 30), (0.7, 0.4, 0.55)
    rows, pool, groups = numbered(texts, statistic), 9, np.arange(90) % 3
    everyone = np.arange(90)

    def by_group(comparison: Comparison) -> Verdicts:
        there = rows.take(everyone[:pool])
        return keep_first_by_group(comparison, there, groups[:pool], rows, everyone[pool:], groups[pool:])

    for decide in (lambda comparison: decided(comparison, rows, pool), by_group):
        together = decide(Comparison(statistic, thresholds, 0.4))
        alone = [Single.of(decide(Comparison(statistic, (threshold,), 0.4))) for threshold in thresholds]
        assert len({int(each.kept.sum()) for each in alone}) == 3
        for number, each in enumerate(alone):
            assert together.kept[number].tolist() == each.kept.tolist()
            assert together.value[number].tolist() == each.value.tolist()
            assert together.against[number].tolist() == each.against.tolist()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("statistic", STATISTICS)
def test_rows_of_a_group_are_compared_with_each_other_alone(statistic: Statistic) -> None:
    rng = random.Random(5)
    texts, pool = planted(rng, 80, 12, 12), 15
    groups = np.array([rng.choice([0, 1, 1, 1, 2, 3, 4, 5]) for _ in texts])
    rows = numbered(texts, statistic)
    everyone = np.arange(len(texts))
    verdicts = keep_first_by_group(
        Comparison(statistic, (0.6,), 0.6),
        rows.take(everyone[:pool]),
        groups[:pool],
        rows,
        everyone[pool:],
        groups[pool:],
    )
    for group in range(6):
        members = np.flatnonzero(groups == group)
        own = members[members >= pool]
        expected = naive([texts[i] for i in members], 0.6, statistic, pool=len(members) - len(own))
        assert verdicts.kept[0, own - pool].tolist() == expected


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("floor", [0.0, 0.3, 0.7])
def test_no_pair_above_the_floor_is_ruled_out(statistic: Statistic, floor: float) -> None:
    texts = planted(random.Random(9), 50, 25, 40)
    rows = numbered(texts, statistic)
    bound = Bound(statistic, floor)
    entries = bound.entries(rows)
    named = {
        pair
        for pairs in Index(entries, bound).look_up(entries)
        for pair in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)
    }
    for i, j in product(range(len(texts)), repeat=2):
        if reference(texts[j], texts[i], statistic) > floor:
            assert (i, j) in named


def test_few_pairs_of_unlike_texts_are_compared() -> None:
    rng = random.Random(2)
    common = [f"c{i}" for i in range(8)]
    texts = [
        " ".join(rng.choice([rng.choice(common), f"w{rng.randrange(3000)}"]) for _ in range(50)) for _ in range(300)
    ]
    rows = numbered(texts, "f")
    bound = Bound("f", 0.7)
    entries = bound.entries(rows)
    pairs = sum(len(found.left) for found in Index(entries, bound).look_up(entries, earlier_only=True))
    assert pairs < 0.01 * 300 * 299 / 2


def test_rows_that_are_all_alike_cost_no_pair_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    exact = shelves.similarities

    def counting(left: WordRows, right: WordRows, pairs: Pairs, *rest: object) -> np.ndarray:  # type: ignore[type-arg]
        nonlocal compared
        compared += len(pairs.left)
        return exact(left, right, pairs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(shelves, "similarities", counting)
    texts = [f"The same long sentence again and again, but for number {i}." for i in range(20_000)]
    verdicts = joined(texts, 0.7)
    assert verdicts.kept.sum() == 1
    assert compared < 12 * len(texts)
    same = joined(["Every row says this."] * 20_000, 0.7)
    assert (same.kept.sum(), set(same.value[1:]), set(same.against[1:])) == (1, {1.0}, {0})


def test_texts_without_words_resemble_nothing_and_stay() -> None:
    verdicts = joined(["", "?!", "a b", "", "…", "a b"], 0.7)
    assert verdicts.kept.tolist() == [True] * 5 + [False]
    assert verdicts.against.tolist() == [NOBODY] * 5 + [2]


def test_an_empty_table_and_an_empty_pool_are_no_problem() -> None:
    assert len(joined([], 0.7).kept) == 0
    assert joined(["a b"], 0.7).kept.tolist() == [True]
    assert joined(["", "a b"], 0.7, pool=1).kept.tolist() == [True]


def test_of_a_huge_row_and_small_ones_each_is_compared() -> None:
    huge = " ".join(f"w{i % 3000}" for i in range(100_000))
    verdicts = joined([huge, "a b c", huge + " end", "a b c d"], 0.7)
    assert verdicts.kept.tolist() == [True, True, False, False]


def test_words_are_told_apart_beyond_the_surrogate_code_points() -> None:
    distinct = 70_000
    texts = [" ".join(f"w{i}" for i in range(start, start + 1000)) for start in range(0, distinct, 1000)]
    assert joined([*texts, "w55295 w55296 w57344", "w55295 w55296 w57343", "w57344 w55296 w55295"], 0.6).value[
        -3:
    ].tolist() == [0.0, pytest.approx(2 / 3), 0.0]


def test_more_distinct_words_than_there_are_characters_are_numbered_anew() -> None:
    vocabulary = Vocabulary(str(i) for i in range(1_200_000))
    rows = WordRows.of(["1199999 1199998 5", "1199999 5 6"], "rouge_score", vocabulary)
    values = similarities(rows, rows, Pairs(np.array([1]), np.array([0])), "f")
    assert values[0] == pytest.approx(2 / 3)


def test_a_floor_above_the_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"floor 0\.8 must lie between 0 and the threshold 0\.7"):
        Comparison("f", (0.7,), 0.8)


# Real text


@pytest.mark.parametrize("statistic", STATISTICS)
def test_self_instruct_seed_tasks_are_thinned_as_the_packages_thin_them(statistic: Statistic) -> None:
    lines = shared_data("self_instruct_seed_tasks.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["instruction"] for line in lines][:120]
    threshold = 0.5
    assert joined(texts, threshold, statistic).kept.tolist() == naive(texts, threshold, statistic)


def test_gsm8k_questions_and_graded_solutions_are_thinned_as_rouge_score_thins_them() -> None:
    lines = shared_data("gsm8k_example_model_solutions.jsonl").read_text("utf-8").splitlines()[:14]
    texts = []
    for line in lines:
        row = json.loads(line)
        texts += [row["question"], *(part["solution"] for part in row.values() if isinstance(part, dict))]
    kept = joined(texts, 0.7).kept
    assert kept.tolist() == naive(texts, 0.7, "f")
    assert 14 < kept.sum() < len(texts)

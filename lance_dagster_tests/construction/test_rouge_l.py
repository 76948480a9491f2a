import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from lance_dagster.construction.filters.rouge_l import MAX_DISTINCT_WORDS, RougeL, Similar, Statistic
from lance_dagster.errors import SettingsError

STATISTICS: tuple[Statistic, ...] = ("f", "any")
SCORER = RougeScorer(["rougeL"])
ODD = [
    "",
    " \n\t ",
    "?!… ---",
    "word",
    "Word, word; WORD.",
    "the cat the cat the cat the",
    "cat the cat the cat",
    "请介绍一条河流。",
    "请介绍 10 条河流。",
    "请介绍 10 座山。",
    "😀 smile 😀",
    "na\u00efve caf\u00e9 na\u00efve",
    "x\x00y z\ufeff",
    "1 22 333 22 1",
    "snake_case and camelCase and kebab-case",
]


def reference(earlier: str, text: str, statistic: Statistic) -> float:
    """What the rouge-score package says."""
    score = SCORER.score(earlier, text)["rougeL"]
    values = [score.fmeasure] if statistic == "f" else [score.precision, score.recall, score.fmeasure]
    return float(max(values))


def random_text(rng: random.Random, vocabulary: int, longest: int) -> str:
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(rng.randrange(longest + 1)))


def most_similar(pool: list[str], text: str, statistic: Statistic) -> Similar:
    rouge = RougeL(statistic)
    for earlier in pool:
        rouge.add(earlier)
    return rouge.most_similar(text)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("vocabulary", [1, 2, 5, 50])
def test_random_texts_are_as_similar_as_rouge_score_says(statistic: Statistic, vocabulary: int) -> None:
    rng = random.Random(vocabulary)
    for _ in range(40):
        pool = [random_text(rng, vocabulary, 30) for _ in range(8)]
        text = random_text(rng, vocabulary, 30)
        expected = [reference(earlier, text, statistic) for earlier in pool]
        found = most_similar(pool, text, statistic)
        assert found.value == pytest.approx(max(expected), abs=1e-12)
        for threshold in (0.5, 0.7, 0.9):
            assert (found.value > threshold) == (max(expected) > threshold)
        if found.position is not None:
            assert expected[found.position] == pytest.approx(max(expected), abs=1e-12)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_odd_texts_are_as_similar_as_rouge_score_says(statistic: Statistic) -> None:
    for earlier in ODD:
        for text in ODD:
            found = most_similar([earlier], text, statistic)
            assert found.value == pytest.approx(reference(earlier, text, statistic), abs=1e-12), (earlier, text)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_texts_of_two_thousand_words_are_as_similar_as_rouge_score_says(statistic: Statistic) -> None:
    rng = random.Random(0)
    earlier = [f"w{rng.randrange(300)}" for _ in range(2000)]
    text = " ".join(word for word in earlier if rng.random() < 0.8)
    expected = reference(" ".join(earlier), text, statistic)
    assert most_similar([" ".join(earlier)], text, statistic).value == pytest.approx(expected, abs=1e-12)


def test_the_most_similar_of_the_pool_is_named_and_the_first_of_equals() -> None:
    assert most_similar(["c d", "a b", "a b", "a x"], "a b", "f") == Similar(1.0, 1)


@pytest.mark.parametrize("text", ["", "…", "q"])
def test_what_shares_no_word_is_similar_to_nothing(text: str) -> None:
    assert most_similar(["a b", ""], text, "any") == Similar(0.0, None)


def test_an_empty_pool_is_similar_to_nothing() -> None:
    assert most_similar([], "a b", "f") == Similar(0.0, None)


@pytest.mark.parametrize("distinct", [55_296, 55_297, 70_000])
def test_words_are_told_apart_beyond_the_surrogate_code_points(distinct: int) -> None:
    rouge = RougeL("f")
    for start in range(0, distinct - 2, 1000):
        rouge.add(" ".join(f"w{i}" for i in range(start, min(start + 1000, distinct - 2))))
    rouge.add("w0 last")
    rouge.add("w55295 w55296")
    assert rouge.most_similar("last w0").value == 0.5
    assert rouge.most_similar("w55296 w55295").value == 0.5
    assert rouge.most_similar("w55295 w55296").value == 1.0


def test_a_million_distinct_words_can_be_compared_and_more_than_there_are_characters_is_a_clear_error() -> None:
    rouge = RougeL("f")
    for start in range(0, MAX_DISTINCT_WORDS, 1024):
        rouge.add(" ".join(map(str, range(start, min(start + 1024, MAX_DISTINCT_WORDS)))))
    rouge.add("999999 1000000 1000001")
    assert rouge.most_similar("999999 1000001").value == pytest.approx(4 / 5)
    assert rouge.most_similar("1000001 999999").value == pytest.approx(2 / 5)
    with pytest.raises(SettingsError, match=r"rouge_scope.*1,112,064 distinct words.*'seed'"):
        rouge.add("one word more")

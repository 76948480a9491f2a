import pytest

from lance_dagster.construction.filters.contamination import EvaluationQuestions, normalise


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("What is 12 + 7?", "what is 12+7"),
        ("What is 12 - 7?", "What is 12 \u2212 7 ?"),
        ("What is 3 * 4?", "What is 3 × 4?"),
        ("What is 8 / 2?", "What is 8÷2?"),
        ("Name the capital of Peru.", "  name the CAPITAL of\nPeru!! "),
        ("Is it «so»?", 'Is it "so"?'),
        ("ﬁnd the ﬂaw", "find the flaw"),
        ("Straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("ＡＢＣ１２３", "abc123"),
        ("soft\u00adhyphen", "softhyphen"),
        ("\ufeffAsk this", "ask this"),
        ("日本の首都は?", "日本の首都は？"),
    ],
)
def test_the_same_question_written_otherwise_is_found(asked: str, written: str) -> None:
    assert written in EvaluationQuestions([asked])


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("What is 12 + 7?", "What is 12 - 7?"),
        ("What is 5 × 3?", "What is 5 ÷ 3?"),
        ("What is 5 \u2212 3?", "What is 5, 3?"),
        ("What is 2 ^ 3?", "What is 2, 3?"),
        ("What is 5% of 80?", "What is 5 of 80?"),
        ("What is 12 + 7?", "What is 127?"),
        ("Is 3 < 4?", "Is 3 > 4?"),
        ("What does 😀 mean?", "What does 😡 mean?"),
        ("का", "की"),
        ("Name the capital of Peru.", "Name the capital of Chile."),
        ("Name a river.", "Name a river. And a lake."),
    ],
)
def test_another_question_is_not_taken_for_it(asked: str, written: str) -> None:
    assert written not in EvaluationQuestions([asked])


@pytest.mark.parametrize("blank", ["", "  ", "?!"])
def test_a_question_without_any_word_matches_nothing(blank: str) -> None:
    questions = EvaluationQuestions([blank, "Name a river."])
    assert len(questions) == 1
    assert blank not in questions


def test_normalising_twice_changes_nothing() -> None:
    for code in range(0x3000):
        text = f"a{chr(code)}b {chr(code)}"
        assert normalise(normalise(text)) == normalise(text), hex(code)

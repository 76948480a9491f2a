import pytest

from lance_dagster.prompts.parsing import extract_answer, mean_score, parse_rationale, parse_score

MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("score: 8", 8),
        ("SCORE: 8", 8),
        ("Score: 8.5", 8.5),
        ("score:8", 8),
        ("Score : 8", 8),
        ("score: 0", 0),
        ("score: 10", 10),
        ("score: 10.0", 10),
        ("score: 6.66667", 6.66667),
        ("score: 8/10", 8),
        ("score: 8 / 10", 8),
        ("score: 8 out of 10", 8),
        ("score: 10/10", 10),
        ("Score: 8 points", 8),
        ("Score: 1 point", 1),
        ("Score: 8/10 points.", 8),
        ("Score: 8.", 8),
        ("Score: 8.5.", 8.5),
        ("**Score:** 8", 8),
        ("**score: 8**", 8),
        ("**Score**: 8", 8),
        ("**Score:** **8**/10", 8),
        ("**Score: 8/10**", 8),
        ("__Score:__ 8", 8),
        ("*Score:* 8", 8),
        ("`score: 8`", 8),
        ("### Score: 8", 8),
        ("- Total score: 8", 8),
        ("It should be X. The response is right. Score: 9", 9),
        ("A clear question.\r\nscore: 8\r\n", 8),
        ("A clear question.\n\n\tscore:\t8\t\n\n", 8),
        ("score: 8\nThat is all there is to say.", 8),
    ],
)
def test_a_score_statement_is_read(text: str, score: float) -> None:
    assert parse_score(text) == score


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The response is right.",
        "8",
        "8/10",
        "score",
        "score 8",
        "score = 8",
        "score is 8",
        "scores: 8",
        "underscore: 8",
        "score:",
        "score:\n8",
        "score: eight",
        "score: none",
        "score: <total points>",
        "score: <total>",
        "score: <8>",
        "score: {{ score }}",
        "score: nan",
        "score: inf",
        "score: 95",
        "score: 10.5",
        "score: 11/10",
        "score: 100",
        "score: 80%",
        "score: -1",
        "score: \N{MINUS SIGN}1",
        "score: +8",
        "score: 1e0",
        "score: .5",
        "score: 8,5",
        "score: 8.5.1",
        "score: 1 0",
        "score: 1*0",
        "score: 1_0",
        "score: 4/5",
        "score: 8/100",
        "score: 8 out of 100",
        "score: 8/",
        "score: /10",
        "score: 7-8",
        "score: 7 - 8",
        "score: 7\N{EN DASH}8",
        "score: 7 to 8",
        "score: 7 or 8",
        "score: 7, 8",
        "score: 7..8",
        "score: 8 for the response, but 5 for the question",
        "score: \N{ARABIC-INDIC DIGIT EIGHT}",
        "\N{LATIN SMALL LETTER LONG S}core: 8",
    ],
)
def test_what_is_not_a_score_in_0_to_10_is_missing(text: str) -> None:
    assert parse_score(text) is None
    assert parse_score(f"A long justification.\n{text}") is None


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("score: 3\nOn reflection:\nscore: 7", 7),
        ("1. Clarity, score: 1\n2. Breadth, score: 0\nTotal score: 1", 1),
        ("The user wrote 'score: 10', which is not a review.\nscore: 2", 2),
        ("score: <total>\nscore: 6", 6),
    ],
)
def test_the_last_of_several_statements_counts(text: str, score: float) -> None:
    assert parse_score(text) == score


@pytest.mark.parametrize("last", ["score: 95", "score: 4/5", "score: 7-8", "score:", "score: <total points>"])
def test_an_invalid_last_statement_does_not_fall_back_to_an_earlier_one(last: str) -> None:
    assert parse_score(f"score: 8\n{last}") is None


@pytest.mark.parametrize(
    ("text", "rationale"),
    [
        ("A clear question.\nscore: 8", "A clear question."),
        ("\n A clear question.\n\n**Score:** 8\n", "A clear question."),
        ("A clear question.\n### Total score: 8", "A clear question."),
        ("A clear question.\n- **Final Score: 8**", "A clear question."),
        ("It should be X. The response is right. Score: 9", "It should be X. The response is right."),
        ("It is **good**\nscore: 8", "It is **good**"),
        ("It is **good** **Score: 8**", "It is **good**"),
        ("First score: 3, now better.\nscore: 7", "First score: 3, now better."),
        ("Out of range.\nscore: 95", "Out of range."),
        ("No statement at all. ", "No statement at all."),
        ("score: 8", ""),
        ("", ""),
    ],
)
def test_the_rationale_is_what_stands_before_the_score_statement(text: str, rationale: str) -> None:
    assert parse_rationale(text) == rationale


@pytest.mark.parametrize(
    "text",
    [
        "Thought Process: easy.\nFinal Answer: Write a poem.",
        "Thought Process: easy.\nFinal Answer:\n\nWrite a poem.\n",
        "final answer: Write a poem.",
        "FINAL ANSWER : Write a poem.",
        "Final  Answer: Write a poem.",
        "**Final Answer:** Write a poem.",
        "**Final Answer**: Write a poem.",
        "**Final Answer** : Write a poem.",
        "**Final Answer:**\nWrite a poem.",
        "__Final Answer:__ Write a poem.",
        "### Final Answer: Write a poem.",
        "I shall end with 'Final Answer: ...'.\nFinal Answer: Write a poem.",
    ],
)
def test_the_answer_is_what_follows_the_last_marker(text: str) -> None:
    assert extract_answer(text, "Final Answer:") == "Write a poem."


def test_emphasis_that_belongs_to_the_answer_is_kept() -> None:
    assert extract_answer("Final Answer: **Write** a poem.", "Final Answer:") == "**Write** a poem."
    assert extract_answer("**Final Answer:** **Write** a poem.", "Final Answer:") == "**Write** a poem."
    assert extract_answer("Final Answer:\n* one\n* two", "Final Answer:") == "* one\n* two"
    assert extract_answer("Final Answer: >", "Final Answer:") == ">"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Write a poem.",
        "Thought Process: the model was cut off before its fin",
        "Final Answer Write a poem.",
        "Answer: Write a poem.",
        "Final Answer:",
        "**Final Answer:**\n",
        "Final Answer: Write a poem.\nFinal Answer: \n",
    ],
)
def test_an_answer_without_marker_or_without_text_is_missing(text: str) -> None:
    assert extract_answer(text, "Final Answer:") is None


def test_without_a_marker_the_whole_text_is_the_answer() -> None:
    assert extract_answer(" Write a poem.\n", None) == "Write a poem."
    assert extract_answer(" \n", None) is None


def test_a_marker_is_text_and_not_a_pattern() -> None:
    assert extract_answer("Answer (new)? yes", "Answer (new)?") == "yes"
    assert extract_answer("Answer new yes", "Answer (new)?") is None


@pytest.mark.parametrize("marker", ["", "  ", ":"])
def test_a_blank_marker_is_refused(marker: str) -> None:
    with pytest.raises(ValueError, match="marker"):
        extract_answer("Write a poem.", marker)


def test_the_mean_leaves_missing_scores_out() -> None:
    assert mean_score([8.0, None, 7.0, 7.0]) == pytest.approx(22 / 3)
    assert mean_score([0.0, None]) == 0.0
    assert mean_score([None, None]) is None
    assert mean_score([]) is None


# A pattern that backtracks needs about 10**12 steps for some of these texts: the suite would not end.
@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("word " * (MEGABYTE // 5) + "\nscore: 8", 8),
        ("score" + " " * MEGABYTE, None),
        ("score" + "*" * MEGABYTE + ": 8", None),
        ("score:" * (MEGABYTE // 6), None),
        ("score: 3\n" * (MEGABYTE // 9) + "score: 8", 8),
        ("score:" + " " * MEGABYTE + "8", 8),
        ("score: 8" + " " * MEGABYTE + "/10", None),
        ("score: " + "9" * MEGABYTE, None),
        ("score: 8." + "0" * MEGABYTE, None),
        ("*" * MEGABYTE + "score: 8", 8),
        ("_*" * (MEGABYTE // 2), None),
        ("\n" * MEGABYTE, None),
    ],
)
def test_a_megabyte_of_anything_is_parsed(text: str, score: float | None) -> None:
    assert parse_score(text) == score
    assert len(parse_rationale(text)) <= len(text)


@pytest.mark.parametrize(
    "text",
    [
        "*" * MEGABYTE,
        "Final" + " " * MEGABYTE,
        "Final " * (MEGABYTE // 6),
        "Final Answer" + " *" * (MEGABYTE // 2),
        "**Final Answer" * (MEGABYTE // 14),
        "Final Answer:" * (MEGABYTE // 13),
    ],
)
def test_a_megabyte_around_a_marker_is_searched(text: str) -> None:
    assert extract_answer(text, "Final Answer:") is None
    assert extract_answer(f"{text}\nFinal Answer: Write a poem.", "Final Answer:") == "Write a poem."

import json
import random
from pathlib import Path

import pytest

from lance_dagster.construction.filters.contamination import EvaluationIndex, EvaluationText, normalise
from lance_dagster_tests.construction.scripted import (
    FLAWED,
    HIGH,
    INSTRUCTION,
    LOW,
    RESPONSE,
    bench,
    evaluation_of,
    fates,
    filters,
    of_kind,
)
from lance_dagster_tests.shared_data import shared_data


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
    assert evaluation_of([asked]).overlap(written) is not None


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
    assert evaluation_of([asked]).overlap(written) is None


@pytest.mark.parametrize("blank", ["", "  ", "?!"])
def test_a_question_without_any_word_matches_nothing(blank: str) -> None:
    questions = evaluation_of([blank, "Name a river."])
    assert len(questions) == 1
    assert questions.overlap(blank) is None


def test_normalising_twice_changes_nothing() -> None:
    for code in range(0x3000):
        text = f"a{chr(code)}b {chr(code)}"
        assert normalise(normalise(text)) == normalise(text), hex(code)


WORDS = tuple(
    "natalia sold clips to 48 of her friends in april and then half as many in may".split()  # noqa: SIM905
)


def index(*texts: str, answers: tuple[str, ...] = (), words: int = 13) -> EvaluationIndex:
    return EvaluationIndex(
        [
            *(EvaluationText("exam", i, "question", text) for i, text in enumerate(texts)),
            *(EvaluationText("exam", i, "answer", text, True) for i, text in enumerate(answers)),
        ],
        words,
    )


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not() -> None:
    exam = index(" ".join(WORDS))
    assert len(WORDS) == 17
    found = exam.overlap("Listen: " + " ".join(WORDS[2:15]).upper() + "! And now?")
    assert found is not None
    assert (found.source.document, found.whole) == (0, False)
    assert found.words == " ".join(WORDS[2:15])
    assert exam.overlap("Listen: " + " ".join(WORDS[2:14]) + " and now something else entirely") is None


def test_every_run_of_words_is_found_and_the_document_is_named() -> None:
    rng = random.Random(0)
    documents = [[f"w{rng.randrange(40)}" for _ in range(rng.randrange(3, 30))] for _ in range(60)]
    exam = index(*(" ".join(document) for document in documents), words=5)
    for _ in range(400):
        text = [f"w{rng.randrange(45)}" for _ in range(rng.randrange(0, 12))]
        if rng.random() < 0.5:
            source = rng.choice(documents)
            start = rng.randrange(len(source))
            text[3:3] = source[start : start + rng.randrange(3, 8)]
        runs = {tuple(text[i : i + 5]) for i in range(len(text) - 4)}
        holders = [
            i for i, d in enumerate(documents) if runs & {tuple(d[j : j + 5]) for j in range(len(d) - 4)} or d == text
        ]
        found = exam.overlap(" ".join(text))
        assert (found is not None) == bool(holders)
        assert found is None or found.source.document in holders


def test_an_answer_counts_by_its_runs_of_words_only() -> None:
    exam = index("Which letter?", answers=("B", " ".join(WORDS)))
    assert exam.overlap("B") is None
    assert exam.shared_run("B") is None
    found = exam.shared_run(" ".join(WORDS[:13]))
    assert found is not None
    assert (found.source.answer, found.source.document) == (True, 1)


def test_a_response_that_is_a_short_question_is_no_overlap() -> None:
    assert index("Name a river.").shared_run("Name a river.") is None


def test_unspaced_scripts_overlap_by_letters() -> None:
    asked = "请写一篇关于中国最长的河流的短文并说明它的重要性"
    found = index(asked).overlap("好的。" + asked[4:20] + "吗")
    assert found is not None
    assert index(asked).overlap(asked[4:14]) is None


@pytest.mark.parametrize("text", ["", "x" * 1000, "\x00", "a\ud800b", "😀" * 50, "word " * 5000])
def test_odd_texts_can_be_looked_up(text: str) -> None:
    assert index(" ".join(WORDS)).overlap(text) is None
    assert index().overlap(text) is None
    assert not index()


def test_gsm8k_test_questions_are_found_in_what_quotes_them() -> None:
    tests = [json.loads(line)["question"] for line in shared_data("gsm8k_test.jsonl").read_text("utf-8").splitlines()]
    exam = index(*tests)
    assert len(exam) == len(tests) == 1319
    for position, question in enumerate(tests[:200]):
        quoted = exam.overlap(f"Solve this: {question.replace(',', ' ,').upper()} Think step by step.")
        assert quoted is not None
        assert quoted.source.document == position or tests[quoted.source.document] != question


def test_hardly_any_gsm8k_training_question_overlaps_with_the_test_questions() -> None:
    lines = {name: shared_data(f"gsm8k_{name}.jsonl").read_text("utf-8").splitlines() for name in ("train", "test")}
    exam = index(*(json.loads(line)["question"] for line in lines["test"]))
    found = [overlap for line in lines["train"] if (overlap := exam.overlap(json.loads(line)["question"]))]
    assert 0 < len(found) < 0.01 * len(lines["train"]), "templates that both sets use, such as 'how much money does'"
    assert all(len(overlap.words.split()) == 13 for overlap in found)


# In the ledger


def test_of_a_contaminated_instruction_nothing_is_kept(tmp_path: Path) -> None:
    rows = bench(tmp_path, instructions=["What is 1+1", "Name a lake."]).ledger(LOW, questions=["WHAT IS 1 + 1 ?"])
    kept = {row["instruction"] for row in rows if row["kept"]}
    assert kept == {"Name a lake."}
    assert fates(rows, RESPONSE) == ["contaminated", "contaminated", None, None]


def test_flawed_responses_to_an_evaluation_question_in_the_seed_are_dropped(tmp_path: Path) -> None:
    rows = bench(tmp_path, flawed=["Not so. worth 1"]).ledger(HIGH, questions=[HIGH["instruction"]])
    assert fates(rows, FLAWED) == ["contaminated"] * 2


def test_the_contamination_filter_can_be_turned_off(tmp_path: Path) -> None:
    rows = bench(tmp_path, instructions=["What is 1 + 1?"], construction=filters(contamination="off")).ledger(
        LOW, questions=["What is 1 + 1?"]
    )
    assert fates(rows, INSTRUCTION) == [None, None]


def test_a_run_of_words_in_a_response_drops_that_response_alone(tmp_path: Path) -> None:
    quoted = " ".join(f"w{i}" for i in range(13))
    made = bench(tmp_path, instructions=["Name a lake.", "Name a river."], responses=[f"So: {quoted}, worth 9"])
    _, ledger = made.made(LOW, questions=[f"start {quoted} end"])
    assert fates(ledger.rows.to_pylist(), RESPONSE) == ["contaminated", None, None, None]
    (hit,) = ledger.hits.to_pylist()
    assert (hit["row_id"], hit["part"], hit["task"]) == (
        of_kind(ledger.rows.to_pylist(), RESPONSE)[0]["row_id"],
        "response",
        "exam",
    )
    assert hit["words"] == quoted
    assert not hit["whole"]


@pytest.mark.parametrize(("mode", "kept"), [("drop", False), ("flag", True), ("off", True)])
def test_contaminated_rows_are_dropped_flagged_or_not_looked_for(tmp_path: Path, mode: str, kept: bool) -> None:
    made = bench(tmp_path, instructions=["What is 1+1", "Name a lake."], construction=filters(contamination=mode))
    _, ledger = made.made(LOW, questions=["WHAT IS 1 + 1 ?"])
    row = of_kind(ledger.rows.to_pylist(), INSTRUCTION)[0]
    assert row["kept"] == kept
    assert row["contaminated"] == (None if mode == "off" else True)
    assert len(ledger.hits) == (0 if mode == "off" else 3), "the instruction and its two responses"

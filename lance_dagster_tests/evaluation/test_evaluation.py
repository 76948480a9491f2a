"""lm-eval on local tasks, and drift."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lance_dagster.errors import EvaluationError
from lance_dagster.evaluation.benchmarks import evaluate_checkpoint, evaluation_texts
from lance_dagster.evaluation.drift import Reference, measure_drift
from lance_dagster.mini.world import World
from lance_dagster.settings import EvaluationSettings, ModelSettings
from lance_dagster_tests.tiny import REPOSITORY

BASE = REPOSITORY / "lance_dagster/mini/base"
TASKS = str(REPOSITORY / "lance_dagster/mini/lm_eval")
MODEL = ModelSettings(path=str(BASE), dtype="float32", device="cpu", threads=1)
DEV = EvaluationSettings(tasks=("mini_dev",), question_fields=("same_question",), batch_size=64)


def evaluation_questions(settings: EvaluationSettings, include_path: str) -> list[str]:
    return [found.text for found in evaluation_texts(settings, include_path) if not found.answer]


def test_the_score_is_the_share_of_right_answers(tmp_path: Path) -> None:
    documents = [
        {"family": "addition", "instruction": "What is 20 + 22?", "answers": ["42"], "same_question": []},
        {"family": "addition", "instruction": "What is 11 + 12?", "answers": ["24"], "same_question": []},
        {"family": "parity", "instruction": "Is 8 even or odd?", "answers": ["odd", "even"], "same_question": []},
        {"family": "parity", "instruction": "Is 9 even or odd?", "answers": ["odd"], "same_question": []},
    ]
    for name in ("mini_tasks.py", "mini_dev.yaml"):
        (tmp_path / name).write_bytes((Path(TASKS) / name).read_bytes())
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    settings = DEV.model_copy(update={"breakdown_field": "family"})
    evaluation = evaluate_checkpoint(BASE, "d", "base", -1, MODEL, settings, str(tmp_path), print)
    scores = {row["task"]: row for row in evaluation.scores.to_pylist()}
    assert scores["mini_dev"]["value"] == 0.75  # 23 is not an accepted answer to the second, on purpose
    assert scores["mini_dev/addition"]["value"] == 0.5
    assert scores["mini_dev/parity"]["value"] == 1.0
    assert scores["mini_dev"]["documents"] == 4
    assert math.isclose(scores["mini_dev"]["stderr"], math.sqrt(0.75 * 0.25 / 3), rel_tol=1e-6)
    assert evaluation.items["value"].to_pylist() == [1.0, 0.0, 1.0, 1.0]
    assert evaluation.items["part"].to_pylist() == ["addition", "addition", "parity", "parity"]
    assert len(set(evaluation.items["document"].to_pylist())) == 4


def test_the_same_checkpoint_scores_the_same_twice() -> None:
    settings = DEV.model_copy(update={"limit": 40})
    first, second = (evaluate_checkpoint(BASE, "d", "base", -1, MODEL, settings, TASKS, print, seed) for seed in (0, 1))
    assert first.scores.equals(second.scores)
    assert first.items.equals(second.items)


def test_the_base_model_answers_and_its_scores_are_high() -> None:
    table = evaluate_checkpoint(BASE, "d", "base", -1, MODEL, DEV, TASKS, print).scores
    assert table["value"][0].as_py() > 0.95
    assert table["documents"][0].as_py() == 252


def test_questions_are_all_texts_that_ask_the_same() -> None:
    questions = evaluation_questions(DEV, TASKS)
    world = World()
    assert len(questions) > 500
    for question in questions[:200]:
        item = world.read(question)
        assert item is not None
        assert item.split == "dev"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("no_such_task",)}, "no_such_task"),
        ({"question_fields": ("nothing",)}, "have none of the fields nothing"),
    ],
)
def test_unknown_tasks_and_fields_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluation_questions(DEV.model_copy(update=change), TASKS)


def test_each_task_is_asked_for_the_fields_that_its_documents_have() -> None:
    both = DEV.model_copy(update={"question_fields": ("same_question", "instruction", "nothing")})
    own = set(evaluation_questions(DEV.model_copy(update={"question_fields": ("instruction",)}), TASKS))
    assert set(evaluation_questions(both, TASKS)) == own | set(evaluation_questions(DEV, TASKS))


GROUP = """
group: two_worlds
task: [left, right]
aggregate_metric_list:
  - {metric: exact_match, weight_by_size: true, filter_list: [first, upper]}
metadata: {version: 1}
"""
FILTERED = """
task: NAME
custom_dataset: !function mini_tasks.documents
output_type: generate_until
test_split: test
doc_to_text: "{{instruction}}"
doc_to_target: "{{answers}}"
process_results: !function mini_tasks.exact_match
generation_kwargs: {until: [], max_gen_toks: 16, do_sample: false}
filter_list:
  - {name: first, filter: [{function: take_first}]}
  - {name: upper, filter: [{function: uppercase}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 1, file: NAME}
"""


def test_a_group_counts_all_its_documents_and_every_filter_has_a_score_of_its_own(tmp_path: Path) -> None:
    # As in mmlu, a group of tasks, and in gsm8k, which has a strict and a lenient filter.
    (tmp_path / "mini_tasks.py").write_bytes((Path(TASKS) / "mini_tasks.py").read_bytes())
    (tmp_path / "group.yaml").write_text(GROUP)
    asked = {"left": [("What is 20 + 22?", "42"), ("Is 8 even or odd?", "even")], "right": [("Is 9 even or odd?", "x")]}
    for name, items in asked.items():
        (tmp_path / f"{name}.yaml").write_text(FILTERED.replace("NAME", name))
        rows = [{"instruction": i, "answers": [a], "family": i.split()[0]} for i, a in items]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = EvaluationSettings(tasks=("two_worlds",), breakdown_field="family", question_fields=("instruction",))
    table, items = evaluate_checkpoint(BASE, "d", "base", -1, MODEL, settings, str(tmp_path), print)
    scores = {(row["task"], row["metric"]): (row["value"], row["documents"]) for row in table.to_pylist()}
    assert scores == {
        ("two_worlds", "exact_match,first"): (pytest.approx(2 / 3), 3),
        ("two_worlds", "exact_match,upper"): (pytest.approx(1 / 3), 3),
        ("two_worlds/What", "exact_match,first"): (1.0, 1),
        ("two_worlds/What", "exact_match,upper"): (1.0, 1),
        ("two_worlds/Is", "exact_match,first"): (0.5, 2),
        ("two_worlds/Is", "exact_match,upper"): (0.0, 2),
    }
    values = {(row["document"], row["metric"]): row["value"] for row in items.to_pylist()}
    assert len(values) == items.num_rows == 3 * 2
    assert sum(value for (_, metric), value in values.items() if metric == "exact_match,first") == 2.0
    instructions = [instruction for items in asked.values() for instruction, _ in items]
    assert sorted(evaluation_questions(settings, str(tmp_path))) == sorted(instructions)


def test_without_fields_the_question_is_what_the_prompt_of_the_task_shows() -> None:
    derived = evaluation_texts(DEV.model_copy(update={"question_fields": ()}), TASKS)
    documents = [json.loads(line) for line in (Path(TASKS) / "dev.jsonl").read_text().splitlines()]
    assert [text.text for text in derived if not text.answer] == [document["instruction"] for document in documents]
    assert {text.field for text in derived if not text.answer} == {"instruction"}
    assert [text.document for text in derived if not text.answer] == list(range(len(documents)))
    assert {text.text for text in derived if text.answer} >= {documents[0]["answers"][0]}


CHOICES = """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices.text}}"
doc_to_target: gold
metadata: {version: 1}
"""
BARE = CHOICES.replace("task: choices", "task: bare").replace("Question: {{question}}\\nAnswer:", "Answer:")


@pytest.mark.parametrize("task", ["choices", "bare"])
def test_questions_and_choices_of_a_multiple_choice_task_are_derived(tmp_path: Path, task: str) -> None:
    question = "Which of these lakes is the deepest of all?"
    row = {"id": "q-1", "question": question, "gold": 1, "choices": {"text": ["the Garda", "the Baikal"]}}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    source = CHOICES if task == "choices" else BARE
    (tmp_path / f"{task}.yaml").write_text(source.replace("DATA", str(tmp_path / "data.jsonl")))
    texts = evaluation_texts(EvaluationSettings(tasks=(task,)), str(tmp_path))
    assert [(text.task, text.field, text.text) for text in texts if not text.answer] == [(task, "question", question)]
    assert {text.text for text in texts if text.answer} == {"the Garda", "the Baikal"}


def test_a_task_without_any_text_asks_for_its_fields(tmp_path: Path) -> None:
    row = {"gold": 1, "choices": {"text": ["the Garda", "the Baikal"]}}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "bare.yaml").write_text(BARE.replace("DATA", str(tmp_path / "data.jsonl")))
    with pytest.raises(EvaluationError, match=r"'bare'.*gold, choices.*evaluation.question_fields"):
        evaluation_texts(EvaluationSettings(tasks=("bare",)), str(tmp_path))


def test_a_missing_task_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="there is no folder"):
        evaluation_questions(DEV, str(tmp_path / "missing"))


def test_a_model_does_not_drift_from_itself_and_does_from_another(tmp_path: Path) -> None:
    from lance_dagster.storage.models import load_model
    from lance_dagster.training.save import save_model

    moved = load_model(BASE, MODEL)
    for weight in moved.parameters():
        weight.data.mul_(1.01)
    save_model(moved, BASE, tmp_path / "moved")
    probes = [([{"role": "user", "content": f"Add {n} and 2."}], str(n + 2)) for n in range(1, 20)]
    references = [Reference("self", BASE, "a"), Reference("moved", tmp_path / "moved", "b")]
    rows = measure_drift(BASE, "a", 0, references, probes, MODEL, print).to_pylist()
    assert rows[0]["kl"] == rows[0]["weight_distance"] == 0.0
    assert rows[1]["kl"] > 0.0
    assert math.isclose(rows[1]["weight_distance"], 0.01 / 1.01, rel_tol=1e-3)
    assert rows[0]["response_nll"] == rows[1]["response_nll"] > 0.0


def test_drift_does_not_depend_on_how_much_fits_into_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lance_dagster.evaluation import drift
    from lance_dagster.storage.models import load_model
    from lance_dagster.training.save import save_model

    moved = load_model(BASE, MODEL)
    for weight in moved.parameters():
        weight.data.mul_(1.2)
    save_model(moved, BASE, tmp_path / "moved")
    probes = [([{"role": "user", "content": f"Add {n} and 2."}], str(n + 2) * (n % 4)) for n in range(1, 20)]
    references = [Reference("moved", tmp_path / "moved", "b")]
    [whole] = measure_drift(BASE, "a", 0, references, probes, MODEL, print).to_pylist()
    monkeypatch.setattr(drift, "_LOGITS_PER_BATCH", 640 * 40)
    monkeypatch.setattr(drift, "_LOGITS_PER_PART", 640)
    [parts] = measure_drift(BASE, "a", 0, references, probes, MODEL, print).to_pylist()
    for figure in ("kl", "response_nll"):
        assert math.isclose(whole[figure], parts[figure], rel_tol=1e-3), figure

"""Scoring checkpoints with lm-eval (section 4 of the paper uses the same harness for most tasks)."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from lance_dagster.construction.filters.contamination import EvaluationText
from lance_dagster.errors import EvaluationError
from lance_dagster.imports import heavy_imports
from lance_dagster.records import EVAL_ITEMS, EVAL_SCORES, row_id, table_of
from lance_dagster.settings import EvaluationSettings, ModelSettings
from lance_dagster.storage.models import load_model, load_tokenizer

# Metrics that are not between 0 and 1.
_UNBOUNDED = ("perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity", "bleu", "chrf", "ter", "brier")


class Evaluation(NamedTuple):
    """What one checkpoint scored: ``scores`` has schema EVAL_SCORES, ``items`` EVAL_ITEMS."""

    scores: pa.Table
    items: pa.Table


def evaluate_checkpoint(
    folder: Path,
    digest: str,
    stage: str,
    iteration: int,
    model: ModelSettings,
    settings: EvaluationSettings,
    include_path: str | None,
    log: Callable[[str], None],
    seed: int = 0,
) -> Evaluation:
    """Scores of one checkpoint on all tasks of the settings, and the metric of every single document.

    ``metric`` is lm-eval's name, with the filter where a task has one: ``exact_match,strict-match``. With
    ``breakdown_field`` a row ``task/value`` follows for each value of that field. A task that lm-eval does not score
    completely, or a score that is no number, is an EvaluationError: nothing is reported as 0.
    """
    with heavy_imports():
        import lm_eval
        from lm_eval.models.huggingface import HFLM

    manager = _task_manager(settings, include_path)
    network = load_model(folder, model)
    tokenizer = load_tokenizer(folder, "left")
    log(f"lm-eval: {stage}, {', '.join(settings.tasks)}")
    with _QuietHarness():
        harness = HFLM(pretrained=network.eval(), tokenizer=tokenizer, batch_size=settings.batch_size)
        results = lm_eval.simple_evaluate(
            model=harness,
            tasks=list(settings.tasks),
            num_fewshot=settings.few_shot,
            limit=settings.limit,
            apply_chat_template=settings.chat_template,
            task_manager=manager,
            log_samples=True,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            bootstrap_iters=1000,
        )
    if results is None:
        raise EvaluationError(f"lm-eval returned no result for {stage} on {', '.join(settings.tasks)}")
    rows: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    common = {"stage": stage, "iteration": iteration, "model_digest": digest}
    for task in settings.tasks:
        rows += [{**common, **row} for row in _task_rows(results, task, settings.breakdown_field)]
        items += [{"model_digest": digest, **row} for row in _item_rows(results, task, settings.breakdown_field)]
    return Evaluation(table_of(rows, EVAL_SCORES), table_of(items, EVAL_ITEMS))


def evaluation_texts(settings: EvaluationSettings, include_path: str | None) -> list[EvaluationText]:
    """What the evaluation tasks ask and answer, document by document.

    Questions are ``question_fields`` of the documents (each a text or a list of texts; a document needs one of them,
    and all that it has are taken). Without that setting they are the text fields that the task's prompt shows, or the
    longest where it shows none. Answers are the task's targets and choices. Raises EvaluationError where a document
    has no question.
    """
    with _QuietHarness():
        loaded = _task_manager(settings, include_path).load(list(settings.tasks))
    texts: list[EvaluationText] = []
    for name, task in _leaf_tasks(loaded):
        for position, document in enumerate(task.eval_docs):
            questions = _question_fields(name, task, document, settings.question_fields)
            texts += [EvaluationText(name, position, field, text) for field, text in questions]
            texts += [EvaluationText(name, position, "answer", text, True) for text in _answers(task, document)]
    return texts


def _question_fields(name: str, task: Any, document: dict[str, Any], wanted: Sequence[str]) -> list[tuple[str, str]]:
    if wanted:
        fields = [field for field in wanted if field in document]
        if not fields:
            raise EvaluationError(
                f"evaluation.question_fields: documents of task {name!r} have none of the fields {', '.join(wanted)}; "
                f"they have {', '.join(document)}"
            )
        return [(field, text) for field in fields for text in _texts(document[field])]
    found = [(field, value) for field, value in document.items() if isinstance(value, str) and value.strip()]
    prompt = task.doc_to_text(document)
    shown = [(field, text) for field, text in found if isinstance(prompt, str) and text.strip() in prompt]
    asked = [(field, text) for field, text in shown if len(text.split()) > 1] or shown
    if not asked and found:
        asked = [max(found, key=lambda entry: len(entry[1]))]
    if not asked:
        raise EvaluationError(
            f"task {name!r}: none of the fields {', '.join(document)} is a text that could be its question, so nothing "
            "can be compared with it. Name the fields in evaluation.question_fields, or set "
            "construction.filters.contamination to 'off'."
        )
    return asked


def _texts(value: Any) -> list[str]:
    """A text, or the texts of a list."""
    entries = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return [entry for entry in entries if isinstance(entry, str)]


def _answers(task: Any, document: dict[str, Any]) -> list[str]:
    """The target, and where a task has choices, all of them."""
    answers = _texts(task.doc_to_target(document))
    if task.config.doc_to_choice is not None:
        answers += _texts(task.doc_to_choice(document))
    return answers


def _leaf_tasks(loaded: Any) -> Iterable[tuple[str, Any]]:
    """Single tasks of what the task manager loaded, groups unfolded."""
    tasks = loaded["tasks"] if isinstance(loaded, dict) and "tasks" in loaded else loaded
    for name, task in tasks.items():
        if isinstance(task, dict):
            yield from _leaf_tasks(task)
        elif hasattr(task, "eval_docs"):
            yield str(name), task


def _task_manager(settings: EvaluationSettings, include_path: str | None) -> Any:
    """A task manager that knows all tasks of the settings; the harness's own tasks are scanned only if needed."""
    with heavy_imports():
        from lm_eval.tasks import TaskManager

    manager = None
    if include_path is not None:
        if not Path(include_path).is_dir():
            raise EvaluationError(f"evaluation.include_path: there is no folder {include_path}")
        manager = TaskManager(include_path=include_path, include_defaults=False)
    if manager is None or not set(settings.tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include_path)
    unknown = sorted(set(settings.tasks) - set(manager.all_tasks))
    if unknown:
        raise EvaluationError(
            f"evaluation.tasks: lm-eval knows no task {', '.join(unknown)}; `lm-eval ls tasks` lists its own, and "
            "evaluation.include_path names a folder with yours"
        )
    return manager


def _task_rows(results: dict[str, Any], task: str, breakdown: str | None) -> Iterable[dict[str, Any]]:
    scores = results["results"].get(task)
    if not scores:
        raise EvaluationError(f"lm-eval scored no document of task {task!r}")
    found = False
    for key, value in scores.items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = scores.get(f"{metric}_stderr,{filter_name}")
        found = True
        known = error if isinstance(error, int | float) else None
        yield _row(task, _metric_name(metric, filter_name), value, known, scores["sample_len"])
    if not found:
        raise EvaluationError(f"lm-eval gave no numeric metric for task {task!r}: {scores}")
    if breakdown is None:
        return
    parts: dict[tuple[str, str], list[float]] = defaultdict(list)
    for sample in [sample for leaf in _leaf_names(results, task) for sample in results["samples"][leaf]]:
        if breakdown not in sample["doc"]:
            raise EvaluationError(f"evaluation.breakdown_field: documents of task {task!r} have no field {breakdown!r}")
        for metric in sample["metrics"]:
            name = _metric_name(metric, sample["filter"])
            parts[(str(sample["doc"][breakdown]), name)].append(float(sample[metric]))
    for (part, metric), values in sorted(parts.items()):
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1) / len(values))
        yield _row(f"{task}/{part}", metric, mean, spread, len(values))


def _item_rows(results: dict[str, Any], task: str, breakdown: str | None) -> Iterable[dict[str, Any]]:
    """One row per document and numeric metric: what paired comparisons of checkpoints need."""
    for leaf in _leaf_names(results, task):
        for sample in results["samples"][leaf]:
            for metric in sample["metrics"]:
                if isinstance(sample[metric], int | float):
                    yield {
                        "task": task,
                        "document": row_id("document", leaf, sample["doc_hash"]),
                        "part": None if breakdown is None else str(sample["doc"][breakdown]),
                        "metric": _metric_name(metric, sample["filter"]),
                        "value": float(sample[metric]),
                    }


def _metric_name(metric: str, filter_name: str) -> str:
    """lm-eval scores a document once per filter of its task; most tasks have none."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _leaf_names(results: dict[str, Any], task: str) -> list[str]:
    """The single tasks of a group, or the task itself."""
    children = results["group_subtasks"].get(task, [])
    return [leaf for child in children for leaf in _leaf_names(results, child)] or [task]


def _row(task: str, metric: str, value: float, error: float | None, documents: int) -> dict[str, Any]:
    bounded = not any(metric.startswith(name) for name in _UNBOUNDED)
    if not math.isfinite(value) or (bounded and not 0.0 <= value <= 1.0):
        raise EvaluationError(f"task {task!r}: the score {metric} is {value}, which is not a share between 0 and 1")
    finite = error is not None and math.isfinite(error)
    return {
        "task": task,
        "metric": metric,
        "value": float(value),
        "stderr": float(error) if finite and error is not None else None,
        "documents": int(documents),
    }


class _QuietHarness:
    """lm-eval logs a page per call at INFO and warns of a missing git repository; only errors are wanted here."""

    def __enter__(self) -> None:
        self._level = logging.getLogger("lm_eval").level
        logging.getLogger("lm_eval").setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("lm_eval").setLevel(self._level)

"""Scoring checkpoints with lm-eval (section 4 of the paper uses the same harness for most tasks)."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_dagster.errors import EvaluationError
from lance_dagster.records import EVAL_SCORES, table_of
from lance_dagster.settings import EvaluationSettings, ModelSettings
from lance_dagster.storage.models import load_model, load_tokenizer

# Metrics that are not between 0 and 1.
_UNBOUNDED = ("perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity", "bleu", "chrf", "ter", "brier")


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
) -> pa.Table:
    """Scores of one checkpoint on all tasks of the settings. Schema EVAL_SCORES.

    With ``breakdown_field`` a row ``task/value`` follows for each value of that field. A task that lm-eval does not
    score completely, or a score that is no number, is an EvaluationError: nothing is reported as 0.
    """
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
    common = {"stage": stage, "iteration": iteration, "model_digest": digest}
    for task in settings.tasks:
        rows += [{**common, **row} for row in _task_rows(results, task, settings.breakdown_field)]
    return table_of(rows, EVAL_SCORES)


def evaluation_questions(settings: EvaluationSettings, include_path: str | None) -> list[str]:
    """What the evaluation tasks ask, from ``question_fields`` of their documents (each a text or a list of texts)."""
    if not settings.question_fields:
        return []
    with _QuietHarness():
        loaded = _task_manager(settings, include_path).load(list(settings.tasks))
    questions: list[str] = []
    for name, task in _leaf_tasks(loaded):
        for document in task.eval_docs:
            for field in settings.question_fields:
                if field not in document:
                    raise EvaluationError(
                        f"evaluation.question_fields: documents of task {name!r} have no field {field!r}; they have "
                        f"{', '.join(document)}"
                    )
                value = document[field]
                questions += [value] if isinstance(value, str) else list(value)
    return questions


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
    samples = results.get("samples", {}).get(task, [])
    documents = results["n-samples"][task]["effective"] if task in results.get("n-samples", {}) else len(samples)
    found = False
    for key, value in scores.items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = scores.get(f"{metric}_stderr,{filter_name}")
        found = True
        yield _row(task, metric, value, error if isinstance(error, int | float) else None, documents)
    if not found:
        raise EvaluationError(f"lm-eval gave no numeric metric for task {task!r}: {scores}")
    if breakdown is None:
        return
    parts: dict[tuple[str, str], list[float]] = defaultdict(list)
    for sample in samples:
        if breakdown not in sample["doc"]:
            raise EvaluationError(f"evaluation.breakdown_field: documents of task {task!r} have no field {breakdown!r}")
        for metric in sample["metrics"]:
            parts[(str(sample["doc"][breakdown]), metric)].append(float(sample[metric]))
    for (part, metric), values in sorted(parts.items()):
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1) / len(values))
        yield _row(f"{task}/{part}", metric, mean, spread, len(values))


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

"""Reward-based generation (section 3.3 of the paper): the low and the high branch of Algorithm 1."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from lance_dagster.construction.steps import StepContext
from lance_dagster.engines.engine import Completion
from lance_dagster.prompts.neutralise import ControlTokens
from lance_dagster.prompts.parsing import extract_answer
from lance_dagster.prompts.prompt_sets import PromptKind
from lance_dagster.records import CANDIDATES, row_id, table_of
from lance_dagster.settings import SamplingSettings

TRUNCATED, NO_ANSWER, FAILED, CONTROL_TOKEN = "truncated", "no_answer", "failed", "control_token"


def new_instructions(context: StepContext, reviewed: pa.Table) -> pa.Table:
    """Low branch: K new instructions per low-scored seed, then K responses to each usable one. Schema CANDIDATES."""
    construction = context.settings.construction
    seeds = [row for row in reviewed.to_pylist() if row["branch"] == "instruction"]
    keys = [(seed, sample) for seed in seeds for sample in range(construction.samples)]
    instructions = _generate(
        context,
        "new_instruction",
        construction.new_instruction,
        [(seed["seed_id"], sample) for seed, sample in keys],
        [{"instruction": seed["instruction"], "response": seed["response"]} for seed, _ in keys],
    )
    rows = []
    for (seed, _), (text, columns) in zip(keys, instructions, strict=True):
        rows.append(_row("instruction", [seed["seed_id"]], seed["seed_id"], text or "", None, columns))
    usable = [row for row in rows if row["drop_reason"] is None]
    per_instruction = construction.responses_per_instruction or construction.samples
    keys = [(row, sample) for row in usable for sample in range(per_instruction)]
    responses = _generate(
        context,
        "answer",
        construction.response,
        [(row["row_id"], sample) for row, sample in keys],
        [{"instruction": row["instruction"]} for row, _ in keys],
    )
    for (parent, _), (text, columns) in zip(keys, responses, strict=True):
        parents = [parent["row_id"]]
        rows.append(_row("response", parents, parent["seed_id"], parent["instruction"], text or "", columns))
    return table_of(rows, CANDIDATES)


def flawed_responses(context: StepContext, reviewed: pa.Table) -> pa.Table:
    """High branch: K deliberately flawed responses per high-scored seed. Schema CANDIDATES."""
    construction = context.settings.construction
    seeds = [row for row in reviewed.to_pylist() if row["branch"] == "preference"]
    keys = [(seed, sample) for seed in seeds for sample in range(construction.samples)]
    generated = _generate(
        context,
        "flawed_response",
        construction.flawed_response,
        [(seed["seed_id"], sample) for seed, sample in keys],
        [{"instruction": seed["instruction"], "response": seed["response"]} for seed, _ in keys],
    )
    rows = []
    for (seed, _), (text, columns) in zip(keys, generated, strict=True):
        identity = [seed["seed_id"]]
        rows.append(_row("flawed_response", identity, seed["seed_id"], seed["instruction"], text or "", columns))
    return table_of(rows, CANDIDATES)


def _generate(
    context: StepContext,
    kind: PromptKind,
    sampling: SamplingSettings,
    keys: list[tuple[str, int]],
    fields: list[dict[str, str]],
) -> list[tuple[str | None, dict[str, Any]]]:
    """Texts (None where the answer is missing) with their provenance columns."""
    completions, seeds = context.ask(kind, sampling, keys, fields)
    marker = context.prompts.template(kind).answer_marker
    control = ControlTokens.of_patterns(context.settings.seed.control_tokens)
    out = []
    for completion, seed in zip(completions, seeds, strict=True):
        text = extract_answer(completion.text, marker)
        columns = {
            **context.provenance(),
            "sampling": {**sampling.model_dump(), "seed": seed},
            "finish_reason": completion.finish_reason,
            "error": completion.error,
            "attempts": None if completion.error is None else completion.attempts,
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "drop_reason": _unusable(completion, text, control),
        }
        out.append((text, columns))
    return out


def _unusable(completion: Completion, text: str | None, control: ControlTokens) -> str | None:
    """Why a text cannot be used at all: there is none, it was cut off, holds no answer, or would close a chat turn."""
    if completion.error is not None:
        return FAILED
    if completion.finish_reason == "length":
        return TRUNCATED
    if text is None:
        return NO_ANSWER
    return CONTROL_TOKEN if control.pattern.search(text) else None


def _row(
    kind: str, parents: list[str], seed_id: str, instruction: str, response: str | None, columns: dict[str, Any]
) -> dict[str, Any]:
    identity = row_id(kind, parents, instruction, response, columns["iteration"], columns["sampling"]["seed"])
    return {
        "row_id": identity,
        "parent_ids": parents,
        "seed_id": seed_id,
        "kind": kind,
        "instruction": instruction,
        "response": response,
        **columns,
    }

"""Measurements on what a trainer is about to learn from, each born of a known silent failure.

A share of 1.0 is healthy for ``eos_in_labels`` and ``template_parity``; ``double_bos`` should be 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lance_dagster.errors import TrainingError
from lance_dagster.prompts.prompt_sets import Message


def measure(
    tokenizer: Any, prompts: Sequence[list[Message]], input_ids: Sequence[list[int]], labels: Sequence[list[int]]
) -> dict[str, float]:
    """Shares over rows: the end token is learned; no doubled start token; the prompt is what generation renders.

    ``labels`` are -100 where no loss is taken. The prompt tokens of a row must equal the tokens that an engine would
    send to the model for the same messages.
    """
    rows = len(input_ids)
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    with_eos = sum(eos in label for label in labels)
    doubled = sum(len(ids) > 1 and bos is not None and ids[0] == bos == ids[1] for ids in input_ids)
    equal = 0
    for messages, ids, label in zip(prompts, input_ids, labels, strict=True):
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        learned_from = next((i for i, value in enumerate(label) if value != -100), len(label))
        equal += ids[:learned_from] == rendered
    return {"eos_in_labels": with_eos / rows, "double_bos": doubled / rows, "template_parity": equal / rows}


def require_learnable(gates: dict[str, float], stage: str) -> None:
    """Raise TrainingError where training would teach the model never to stop, or another prompt than it is asked."""
    if gates["eos_in_labels"] < 1.0:
        raise TrainingError(
            f"{stage}: in {1 - gates['eos_in_labels']:.1%} of the rows the end token is not learned, so the model "
            "would not stop. The chat template must close the assistant turn with the tokenizer's eos_token."
        )
    if gates["template_parity"] < 1.0:
        raise TrainingError(
            f"{stage}: in {1 - gates['template_parity']:.1%} of the rows the training prompt differs from the one that "
            "generation uses. The chat template renders a prompt differently with and without a response."
        )


def require_changed(share: float, smallest: float, stage: str) -> None:
    """Raise TrainingError where almost every weight, rounded to the type that is saved, is what it was before."""
    if share < smallest:
        raise TrainingError(
            f"{stage} changed only {share:.3%} of the weights, rounded to the type in which they are saved; "
            f"min_weights_changed asks for {smallest:.3%}. The steps were too few or too small: raise learning_rate or "
            "epochs of this stage, set model.dtype to float32, or allow it with min_weights_changed: 0."
        )

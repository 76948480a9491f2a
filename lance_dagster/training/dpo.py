"""DPO (equations 2 to 4 of the paper) with TRL's DPOTrainer; the reference is M_t^S, the model it starts from."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from lance_dagster.errors import TrainingError
from lance_dagster.imports import heavy_imports
from lance_dagster.settings import DPOSettings, ModelSettings
from lance_dagster.storage.models import load_tokenizer
from lance_dagster.training import gates
from lance_dagster.training.save import save_trained
from lance_dagster.training.stage import (
    Log,
    TrainingResult,
    curve_of,
    fits,
    load_trainable,
    on_disk,
    prompt_messages,
    report_progress,
    trainer_arguments,
    work_folder,
)

_REWARDS = ["rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"]
_CURVE = ["loss", "learning_rate", "grad_norm", *_REWARDS]


def train_dpo(
    start: Path, pairs: pa.Table, out: Path, settings: DPOSettings, model: ModelSettings, seed: int, log: Log
) -> TrainingResult:
    """Train the SFT checkpoint in ``start`` on ``pairs`` (schema PREFERENCE_SET) and write the result to ``out``.

    The reference is the model of ``start``: its log-probabilities are computed before the first step, or it stays
    beside the model that is trained. Pairs with a side over ``max_tokens`` are left out and counted, none is cut.
    """
    if not pairs.num_rows:
        raise TrainingError("the preference set is empty: nothing to train on")
    with heavy_imports():
        from datasets import disable_progress_bars
        from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    called = time.monotonic()
    tokenizer = load_tokenizer(start)
    records = [
        {"prompt": prompt_messages(row["system"], row["prompt"]), "chosen": row["chosen"], "rejected": row["rejected"]}
        for row in pairs.select(["system", "prompt", "chosen", "rejected"]).to_pylist()
    ]
    fitting = [
        row
        for row in records
        if all(fits(tokenizer, row["prompt"], row[side], settings.max_tokens) for side in ("chosen", "rejected"))
    ]
    if not fitting:
        raise TrainingError(f"all {pairs.num_rows} pairs are longer than max_tokens {settings.max_tokens}")
    network, bf16, adapters = load_trainable(start, model, settings)
    beside = settings.reference == "live" and adapters is None
    with work_folder(out) as work:
        config = DPOConfig(
            **trainer_arguments(settings, model, seed, len(fitting), work, bf16),
            beta=settings.beta,
            loss_type=["sigmoid"],
            precompute_ref_log_probs=settings.reference == "precomputed",
        )
        examples = [
            {
                "prompt": row["prompt"],
                **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")},
            }
            for row in fitting
        ]
        log(f"DPO: {len(fitting)} pairs, reference {settings.reference}")
        with _no_progress_bar():  # of the reference's log-probabilities
            trainer = DPOTrainer(
                model=network,
                ref_model=load_trainable(start, model, settings).network if beside else None,
                args=config,
                train_dataset=on_disk(examples, work, config),
                processing_class=tokenizer,
                peft_config=adapters,
            )
        report_progress(trainer, log, "DPO")
        learned = trainer.train_dataset
        heads = [*learned["prompt_ids"], *learned["prompt_ids"]]
        answers = [*learned["chosen_ids"], *learned["rejected_ids"]]
        measured = gates.measure(
            tokenizer,
            [row["prompt"] for row in fitting] * 2,
            [head + answer for head, answer in zip(heads, answers, strict=True)],
            [[-100] * len(head) + answer for head, answer in zip(heads, answers, strict=True)],
        )
        gates.require_learnable(measured, "DPO")
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        changed = save_trained(trainer, start, out, model)
    gates.require_changed(changed, settings.min_weights_changed, "DPO")
    state = trainer.state
    curve = curve_of(state.log_history, _CURVE)
    return TrainingResult(
        rows=len(fitting),
        left_out=pairs.num_rows - len(fitting),
        steps=state.global_step,
        tokens=int(state.num_input_tokens_seen),
        seconds=seconds,
        prepare_seconds=started - called,
        curve=curve,
        gates={**measured, "first_loss": curve[0]["loss"]},
        weights_changed=changed,
    )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before

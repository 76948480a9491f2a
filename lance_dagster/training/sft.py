"""SFT (equation 1 of the paper): negative log-likelihood of the responses, with TRL's SFTTrainer."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa

from lance_dagster.errors import TrainingError
from lance_dagster.imports import heavy_imports
from lance_dagster.settings import ModelSettings, SFTSettings
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


def train_sft(
    start: Path,
    rows: pa.Table,
    out: Path,
    settings: SFTSettings,
    model: ModelSettings,
    seed: int,
    log: Log,
    steps: int | None = None,
) -> TrainingResult:
    """Train the checkpoint in ``start`` on ``rows`` (schema SFT_SET) and write the result to ``out``.

    Loss is taken on responses alone. Rows over ``max_tokens`` are left out and counted, none is cut.
    ``steps`` replaces the number of epochs.
    """
    if not rows.num_rows:
        raise TrainingError("the SFT set is empty: nothing to train on")
    with heavy_imports():
        from datasets import disable_progress_bars
        from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    called = time.monotonic()
    tokenizer = load_tokenizer(start)
    records = [
        {"prompt": prompt_messages(row["system"], row["prompt"]), "response": row["response"]}
        for row in rows.select(["system", "prompt", "response"]).to_pylist()
    ]
    fitting = [row for row in records if fits(tokenizer, row["prompt"], row["response"], settings.max_tokens)]
    if not fitting:
        raise TrainingError(f"all {rows.num_rows} SFT rows are longer than max_tokens {settings.max_tokens}")
    network, bf16, adapters = load_trainable(start, model, settings)
    with work_folder(out) as work:
        common = trainer_arguments(settings, model, seed, len(fitting), work, bf16, steps)
        config = SFTConfig(**common, completion_only_loss=True)
        examples = [
            {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": row["response"]}]}
            for row in fitting
        ]
        trainer = SFTTrainer(
            model=network,
            args=config,
            train_dataset=on_disk(examples, work, config),
            processing_class=tokenizer,
            peft_config=adapters,
        )
        report_progress(trainer, log, "SFT")
        learned = trainer.train_dataset
        measured = gates.measure(tokenizer, [row["prompt"] for row in fitting], learned["input_ids"], learned["labels"])
        gates.require_learnable(measured, "SFT")
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        changed = save_trained(trainer, start, out, model)
    gates.require_changed(changed, settings.min_weights_changed, "SFT")
    state = trainer.state
    return TrainingResult(
        rows=len(fitting),
        left_out=rows.num_rows - len(fitting),
        steps=state.global_step,
        tokens=int(state.num_input_tokens_seen),
        seconds=seconds,
        prepare_seconds=started - called,
        curve=curve_of(state.log_history, ["loss", "learning_rate", "grad_norm", "mean_token_accuracy"]),
        gates=measured,
        weights_changed=changed,
    )

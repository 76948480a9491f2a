"""SFT (equation 1 of the paper): negative log-likelihood of the responses, with TRL's SFTTrainer."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pyarrow as pa

from lance_dagster.errors import TrainingError
from lance_dagster.settings import ModelSettings, SFTSettings
from lance_dagster.storage.models import load_tokenizer
from lance_dagster.training import gates
from lance_dagster.training.save import save_trained
from lance_dagster.training.stage import (
    Log,
    TrainingResult,
    curve_of,
    load_trainable,
    prompt_messages,
    report_progress,
    trainer_arguments,
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
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    tokenizer = load_tokenizer(start)
    network, bf16 = load_trainable(start, model)
    records = rows.select(["system", "prompt", "response"]).to_pylist()
    dataset = Dataset.from_list(
        [
            {
                "prompt": prompt_messages(row["system"], row["prompt"]),
                "completion": [{"role": "assistant", "content": row["response"]}],
                "row": index,
            }
            for index, row in enumerate(records)
        ]
    )
    with tempfile.TemporaryDirectory(prefix="lance-sft-") as scratch:
        common = trainer_arguments(settings, model, seed, rows.num_rows, Path(scratch), bf16, steps)
        trainer = SFTTrainer(
            model=network,
            args=SFTConfig(**common, completion_only_loss=True),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
        report_progress(trainer, log, "SFT")
        fitting = trainer.train_dataset.filter(lambda example: len(example["input_ids"]) <= settings.max_tokens)
        left_out = rows.num_rows - len(fitting)
        if not len(fitting):
            raise TrainingError(f"all {rows.num_rows} SFT rows are longer than max_tokens {settings.max_tokens}")
        prompts = [prompt_messages(records[i]["system"], records[i]["prompt"]) for i in fitting["row"]]
        measured = gates.measure(tokenizer, prompts, fitting["input_ids"], fitting["labels"])
        gates.require_learnable(measured, "SFT")
        trainer.train_dataset = fitting
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        state = trainer.state
        changed = save_trained(trainer, start, out, model)
    gates.require_changed(changed, settings.min_weights_changed, "SFT")
    return TrainingResult(
        rows=len(fitting),
        left_out=left_out,
        steps=state.global_step,
        tokens=int(state.num_input_tokens_seen),
        seconds=seconds,
        curve=curve_of(state.log_history, ["loss", "learning_rate", "grad_norm", "mean_token_accuracy"]),
        gates=measured,
        weights_changed=changed,
    )

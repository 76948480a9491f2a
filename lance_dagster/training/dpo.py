"""DPO (equations 2 to 4 of the paper) with TRL's DPOTrainer; the reference is M_t^S, the model it starts from."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pyarrow as pa

from lance_dagster.errors import TrainingError
from lance_dagster.settings import DPOSettings, ModelSettings
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

_REWARDS = ["rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"]
_CURVE = ["loss", "learning_rate", "grad_norm", *_REWARDS]


def train_dpo(
    start: Path, pairs: pa.Table, out: Path, settings: DPOSettings, model: ModelSettings, seed: int, log: Log
) -> TrainingResult:
    """Train the SFT checkpoint in ``start`` on ``pairs`` (schema PREFERENCE_SET) and write the result to ``out``.

    The reference is loaded from ``start`` a second time and stays as it is. Pairs with a side over ``max_tokens`` are
    left out and counted, none is cut.
    """
    if not pairs.num_rows:
        raise TrainingError("the preference set is empty: nothing to train on")
    from datasets import Dataset, disable_progress_bars
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    tokenizer = load_tokenizer(start)
    network, bf16 = load_trainable(start, model)
    records = pairs.select(["system", "prompt", "chosen", "rejected"]).to_pylist()
    dataset = Dataset.from_list(
        [
            {
                "prompt": prompt_messages(row["system"], row["prompt"]),
                "chosen": [{"role": "assistant", "content": row["chosen"]}],
                "rejected": [{"role": "assistant", "content": row["rejected"]}],
                "row": index,
            }
            for index, row in enumerate(records)
        ]
    )
    with tempfile.TemporaryDirectory(prefix="lance-dpo-") as scratch:
        common = trainer_arguments(settings, model, seed, pairs.num_rows, Path(scratch), bf16)
        trainer = DPOTrainer(
            model=network,
            ref_model=load_trainable(start, model).network,
            args=DPOConfig(**common, beta=settings.beta, loss_type=["sigmoid"]),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
        report_progress(trainer, log, "DPO")

        def fits(example: dict[str, list[int]]) -> bool:
            answer = max(len(example["chosen_ids"]), len(example["rejected_ids"]))
            return len(example["prompt_ids"]) + answer <= settings.max_tokens

        fitting = trainer.train_dataset.filter(fits)
        if not len(fitting):
            raise TrainingError(f"all {pairs.num_rows} pairs are longer than max_tokens {settings.max_tokens}")
        prompts = [prompt_messages(records[i]["system"], records[i]["prompt"]) for i in fitting["row"]] * 2
        answers = [*fitting["chosen_ids"], *fitting["rejected_ids"]]
        heads = [*fitting["prompt_ids"], *fitting["prompt_ids"]]
        measured = gates.measure(
            tokenizer,
            prompts,
            [head + answer for head, answer in zip(heads, answers, strict=True)],
            [[-100] * len(head) + answer for head, answer in zip(heads, answers, strict=True)],
        )
        gates.require_learnable(measured, "DPO")
        trainer.train_dataset = fitting
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        state = trainer.state
        changed = save_trained(trainer, start, out, model)
    gates.require_changed(changed, settings.min_weights_changed, "DPO")
    curve = curve_of(state.log_history, _CURVE)
    return TrainingResult(
        rows=len(fitting),
        left_out=pairs.num_rows - len(fitting),
        steps=state.global_step,
        tokens=int(state.num_input_tokens_seen),
        seconds=seconds,
        curve=curve,
        gates={**measured, "first_loss": curve[0]["loss"]},
        weights_changed=changed,
    )

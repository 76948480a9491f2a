"""What SFT and DPO share: the model they train, trainer arguments from settings, and the curve that is kept."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lance_dagster.errors import SettingsError
from lance_dagster.prompts.prompt_sets import Message
from lance_dagster.settings import ModelSettings, OptimiserSettings
from lance_dagster.storage.models import device_of, load_model

Log = Callable[[str], None]
_CURVE_POINTS = 50
_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class TrainingResult:
    """What one stage did. ``curve`` has a point per logged step: step, loss, learning_rate and, for DPO, rewards.

    ``seconds`` are those of the steps, ``prepare_seconds`` those before the first one: loading the model, tokenising,
    log-probabilities of DPO's reference. ``weights_changed`` is the share of weights that differ from the start, in the
    type that they are saved in.
    """

    rows: int
    left_out: int
    steps: int
    tokens: int
    seconds: float
    prepare_seconds: float
    curve: list[dict[str, float]]
    gates: dict[str, float]
    weights_changed: float

    def metrics(self) -> dict[str, Any]:
        """For the manifest and for asset metadata: losses, throughput (tokens/s of forward and backward), gates."""
        losses = [point["loss"] for point in self.curve if "loss" in point]
        tenth = max(1, len(losses) // 10)
        return {
            "rows": self.rows,
            "left_out_over_long": self.left_out,
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "prepare_seconds": round(self.prepare_seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1) if self.seconds else 0.0,
            "weights_changed": self.weights_changed,
            "loss/first": losses[0],
            "loss/last": sum(losses[-tenth:]) / tenth,
            **{f"gate/{name}": value for name, value in self.gates.items()},
        }


class Trainable(NamedTuple):
    """A model to train, whether its forward passes may compute in bfloat16, and the LoRA adapters to give it."""

    network: Any
    bf16: bool
    adapters: Any | None


def load_trainable(start: Path, model: ModelSettings, settings: OptimiserSettings) -> Trainable:
    """The checkpoint in ``start``, ready to be trained.

    A step of a small learning rate is less than the distance between two neighbouring bfloat16 numbers and would be
    rounded away: at 5e-7 only one weight in 2,000 would ever change. So what is trained (all weights, or LoRA adapters)
    is kept in 32 bits, and a GPU that can computes in bfloat16 where that is the type of the checkpoint.
    """
    import torch

    spread = int(os.environ.get("WORLD_SIZE", "1")) > 1  # then the trainer places each process's part of the model
    network = load_model(start, model.model_copy(update={"device": "cpu"}) if spread else model)
    bf16 = network.dtype != torch.float32 and device_of(model).type == "cuda" and torch.cuda.is_bf16_supported()
    if settings.lora_rank is None:
        return Trainable(network.float(), bf16, None)
    return Trainable(network, bf16, _adapters(settings, settings.lora_rank))


def _adapters(settings: OptimiserSettings, rank: int) -> Any:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise SettingsError(
            "LoRA adapters cannot be merged while FSDP spreads the weights over several GPUs. Unset lora_rank, or give "
            "training.accelerate_config a file with distributed_type: MULTI_GPU."
        )
    try:
        from peft import LoraConfig
    except ModuleNotFoundError as error:
        raise SettingsError(
            "lora_rank is set, but the package peft is not installed: `pip install 'lance-dagster[lora]'`"
        ) from error
    return LoraConfig(
        r=rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def trainer_arguments(
    settings: OptimiserSettings,
    model: ModelSettings,
    seed: int,
    rows: int,
    scratch: Path,
    bf16: bool,
    steps: int | None = None,
) -> dict[str, Any]:
    """Arguments that SFTConfig and DPOConfig have in common. Nothing is cut: rows were measured before.

    ``bf16``: see Trainable. ``steps`` replaces the number of epochs.
    """
    device = device_of(model)
    expected = round(rows * settings.epochs / (settings.batch_size * settings.gradient_accumulation))
    return {
        "max_steps": -1 if steps is None else steps,
        "output_dir": str(scratch),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "optim": _installed(settings.optimiser),
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "max_length": None,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": device.type == "cpu",
        "bf16": bf16,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "dataloader_pin_memory": device.type == "cuda",
        "logging_steps": max(1, (steps or expected) // _CURVE_POINTS),
        "logging_first_step": True,
        "include_num_input_tokens_seen": "all",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _installed(optimiser: str) -> str:
    if optimiser == "paged_adamw_8bit" and find_spec("bitsandbytes") is None:
        raise SettingsError(
            "optimiser is 'paged_adamw_8bit', but the package bitsandbytes is not installed: `pip install bitsandbytes`"
            " on a machine with a GPU, or choose another optimiser"
        )
    return optimiser


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """A folder inside ``out`` for the data set that is trained on; all processes of a stage see the same one."""
    folder = out / ".work"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def on_disk(records: Sequence[dict[str, Any]], folder: Path, config: Any) -> Any:
    """A data set in ``folder`` that is written by the first process of a stage and read by all."""
    from datasets import Dataset, load_from_disk

    with config.main_process_first():
        if config.process_index == 0:
            Dataset.from_list(list(records)).save_to_disk(folder / "rows")
    return load_from_disk(folder / "rows")


def fits(tokenizer: Any, messages: list[Message], response: str, max_tokens: int) -> bool:
    """Whether prompt and response, as they are trained on, have at most ``max_tokens`` tokens."""
    turns = [*messages, {"role": "assistant", "content": response}]
    return len(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)) <= max_tokens


def prompt_messages(system: str | None, prompt: str) -> list[Message]:
    """The chat messages that come before a response, the same in generation and in training."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": prompt}]


def report_progress(trainer: Any, log: Log, stage: str) -> None:
    """Send a progress line to ``log`` every few seconds, instead of printing the raw numbers."""
    from transformers import PrinterCallback, TrainerCallback

    last = [float("-inf")]

    class Reporting(TrainerCallback):  # type: ignore[misc]
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
        ) -> None:
            now = time.monotonic()
            if logs and "loss" in logs and now - last[0] >= _SECONDS_BETWEEN_LINES:
                last[0] = now
                log(f"{stage}: step {state.global_step}/{state.max_steps}, loss {float(logs['loss']):.4f}")

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Reporting())


def curve_of(history: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, float]]:
    """The logged points of a run with some of their numbers."""
    return [
        {"step": float(entry["step"]), **{name: float(entry[name]) for name in names if name in entry}}
        for entry in history
        if "loss" in entry
    ]

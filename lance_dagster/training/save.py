"""Saving what a trainer made: an ordinary model folder that every reader can open, and how much of it is new."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lance_dagster.errors import TrainingError
from lance_dagster.settings import ModelSettings
from lance_dagster.storage.models import load_model, load_tokenizer

_CARRIED = (".json", ".jinja", ".txt", ".model", ".py")  # tokenizer, template, and the code that some hub models have


def save_trained(trainer: Any, start: Path, out: Path, model: ModelSettings) -> float:
    """Write the trained weights to ``out`` in the type of the checkpoint in ``start``; returns the share that changed.

    LoRA adapters are merged into the weights. Training works in 32 bits, so what counts is whether a weight differs
    from ``start`` after rounding to the type that is saved. TrainingError for weights that are not finite; then nothing
    is written. All processes of a stage call this, the first one writes.
    """
    from accelerate.utils import broadcast_object_list

    weights = _trained_weights(trainer)
    share = [0.0]
    if trainer.accelerator.is_main_process:
        share = [_save(weights, start, out, model)]
    broadcast_object_list(share)
    return share[0]


def _trained_weights(trainer: Any) -> dict[str, Any]:
    """All weights by name, whole, in the first process at least."""
    network = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(network, "merge_and_unload"):
        weights: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return weights
    merged: dict[str, Any] = network.merge_and_unload().state_dict()
    return merged


def _save(weights: dict[str, Any], start: Path, out: Path, model: ModelSettings) -> float:
    import torch

    network = load_model(start, model.model_copy(update={"device": "cpu"}))
    changed, total = 0, 0
    with torch.no_grad():
        for name, weight in network.named_parameters():
            new = weights[name].to(device=weight.device, dtype=weight.dtype)
            changed += int((new != weight).sum())
            total += weight.numel()
            weight.copy_(new)
    save_model(network, start, out)
    return changed / total


def save_model(model: Any, source: Path, out: Path) -> None:
    """Write the weights of ``model`` to ``out``, and tokenizer, template and code of ``source`` byte for byte.

    Its generation config ends texts with the token that ends a turn: base models name another one, and engines that go
    by the file would not stop.
    """
    import torch

    broken = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise TrainingError(
            f"training ended with weights that are not finite ({', '.join(broken[:3])}): lower the learning rate"
        )
    tokenizer = load_tokenizer(source)
    generation = model.generation_config
    known = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    ends = [tokenizer.eos_token_id, *(token for token in known if token not in (None, tokenizer.eos_token_id))]
    generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    generation.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    for path in sorted(source.iterdir()):
        carried = path.suffix in _CARRIED and not path.name.endswith(".index.json")
        if path.is_file() and carried and not (out / path.name).exists() and path.name != "pretraining.json":
            shutil.copyfile(path, out / path.name)

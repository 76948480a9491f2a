"""Saving what a trainer made: an ordinary model folder that every reader can open, and how much of it is new."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lance_dagster.errors import TrainingError
from lance_dagster.settings import ModelSettings
from lance_dagster.storage.models import load_model

_CARRIED = (".json", ".jinja", ".txt", ".model", ".py")  # tokenizer, template, and the code that some hub models have


def save_trained(trainer: Any, start: Path, out: Path, model: ModelSettings) -> float:
    """Write the trained weights to ``out`` in the type of the checkpoint in ``start``; returns the share that changed.

    Training keeps its weights in 32 bits, so what counts is whether a weight differs from ``start`` after rounding to
    the type that is saved. TrainingError for weights that are not finite; then nothing is written.
    """
    import torch

    trained = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    network = load_model(start, model.model_copy(update={"device": "cpu"}))
    changed, total = 0, 0
    with torch.no_grad():
        for name, weight in network.named_parameters():
            new = trained[name].to(device=weight.device, dtype=weight.dtype)
            changed += int((new != weight).sum())
            total += weight.numel()
            weight.copy_(new)
    save_model(network, start, out)
    return changed / total


def save_model(model: Any, source: Path, out: Path) -> None:
    """Write the weights of ``model`` to ``out``; tokenizer, template and code are those of ``source``, byte for byte."""
    import torch

    broken = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise TrainingError(
            f"training ended with weights that are not finite ({', '.join(broken[:3])}): lower the learning rate"
        )
    model.save_pretrained(out)
    for path in sorted(source.iterdir()):
        carried = path.suffix in _CARRIED and not path.name.endswith(".index.json")
        if path.is_file() and carried and not (out / path.name).exists() and path.name != "pretraining.json":
            shutil.copyfile(path, out / path.name)

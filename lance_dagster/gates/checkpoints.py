"""Gates on a trained checkpoint, from the metrics of its manifest and from its weights.

What the trainer measured before it started (``gate/…``) is read here, not measured again. A metric that is not there
fails its gate: a checkpoint that was not looked at is not a good one. A checkpoint whose stage the settings leave out
(``steps`` is 0) was not trained and passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lance_dagster.gates.verdict import Verdict

LN_2 = math.log(2)


def end_token_learned(metrics: Mapping[str, Any]) -> Verdict:
    """The end token is in the labels of every row, so the model learns to stop."""
    return _share(metrics, "gate/eos_in_labels", 1.0, "of the rows teach the model to stop")


def no_double_start_token(metrics: Mapping[str, Any]) -> Verdict:
    """No row starts with two start tokens, which the model never sees when it generates."""
    return _share(metrics, "gate/double_bos", 0.0, "of the rows start with a doubled start token")


def same_template(metrics: Mapping[str, Any]) -> Verdict:
    """The prompt of every row is token for token the one that generation sends."""
    return _share(metrics, "gate/template_parity", 1.0, "of the training prompts are those of generation")


def loss_fell(metrics: Mapping[str, Any]) -> Verdict:
    """The mean loss of the last tenth of the steps is below the first one."""
    if _untrained(metrics):
        return _PASSED_ON
    first, last = metrics.get("loss/first"), metrics.get("loss/last")
    if first is None or last is None:
        return _missing("loss/first and loss/last")
    figures = {"first": float(first), "last": float(last)}
    return Verdict(last < first, f"the loss went from {first:.4f} to {last:.4f}", figures)


def first_loss_is_ln_2(metrics: Mapping[str, Any], tolerance: float) -> Verdict:
    """Before its first update the policy is the reference, so every DPO margin is 0 and the loss is ln 2.

    Another value means that the reference is not the model that training starts from.
    """
    if _untrained(metrics):
        return _PASSED_ON
    first = metrics.get("gate/first_loss")
    if first is None:
        return _missing("gate/first_loss")
    return Verdict(
        abs(first - LN_2) <= tolerance,
        f"the first DPO loss is {first:.4f}, ln 2 is {LN_2:.4f}, a difference of {tolerance:g} is allowed",
        {"first_loss": float(first)},
    )


def finite_weights(folder: Path) -> Verdict:
    """No weight of any safetensors file in ``folder`` is NaN or infinite."""
    import torch
    from safetensors import safe_open

    broken, weights = [], 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict: it has no iterator)
                tensor = tensors.get_tensor(name)
                weights += tensor.numel()
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    broken.append(name)
    figures = {"weights": weights, "broken_tensors": len(broken)}
    if broken:
        return Verdict(False, f"weights that are not finite: {', '.join(broken[:3])}", figures)
    return Verdict(True, f"all {weights} weights are finite", figures)


_PASSED_ON = Verdict(True, "the settings leave this stage out: the model passed on as it was", {"steps": 0})


def _untrained(metrics: Mapping[str, Any]) -> bool:
    return metrics.get("steps") == 0


def _missing(name: str) -> Verdict:
    return Verdict(False, f"the manifest has no {name}: the checkpoint was not measured; re-materialise it")


def _share(metrics: Mapping[str, Any], name: str, healthy: float, what: str) -> Verdict:
    if _untrained(metrics):
        return _PASSED_ON
    value = metrics.get(name)
    if value is None:
        return _missing(name)
    return Verdict(value == healthy, f"{value:.1%} {what}, it must be {healthy:.0%}", {"share": float(value)})

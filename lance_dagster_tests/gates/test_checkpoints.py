"""Gates on checkpoints: each passes what is healthy and fails what is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lance_dagster.gates import checkpoints
from lance_dagster.gates.verdict import Verdict

HEALTHY = {
    "steps": 10,
    "gate/eos_in_labels": 1.0,
    "gate/double_bos": 0.0,
    "gate/template_parity": 1.0,
    "gate/first_loss": math.log(2),
    "loss/first": 0.9,
    "loss/last": 0.4,
}


def first_loss(metrics: Mapping[str, Any]) -> Verdict:
    return checkpoints.first_loss_is_ln_2(metrics, 0.05)


GATES: list[tuple[Callable[[Mapping[str, Any]], Verdict], str, float]] = [
    (checkpoints.end_token_learned, "gate/eos_in_labels", 0.99),
    (checkpoints.no_double_start_token, "gate/double_bos", 0.01),
    (checkpoints.same_template, "gate/template_parity", 0.99),
    (checkpoints.loss_fell, "loss/last", 0.9),
    (first_loss, "gate/first_loss", 0.8),
]


@pytest.mark.parametrize(("gate", "metric", "sick"), GATES)
def test_a_metric_decides_and_one_that_is_missing_does_not_pass(
    gate: Callable[[Mapping[str, Any]], Verdict], metric: str, sick: float
) -> None:
    assert gate(HEALTHY).passed
    assert not gate({**HEALTHY, metric: sick}).passed
    missing = gate({name: value for name, value in HEALTHY.items() if name != metric})
    assert not missing.passed and "re-materialise" in missing.explanation
    assert gate({"steps": 0}).passed, "a stage that the settings leave out was not trained"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_found_in_any_file(tmp_path: Path, bad: float) -> None:
    save_file({"good": torch.ones(3)}, tmp_path / "model-1.safetensors")
    assert checkpoints.finite_weights(tmp_path).passed
    save_file({"head": torch.tensor([1.0, bad]), "ids": torch.tensor([1])}, tmp_path / "model-2.safetensors")
    verdict = checkpoints.finite_weights(tmp_path)
    assert not verdict.passed and "head" in verdict.explanation
    assert verdict.figures == {"weights": 6, "broken_tensors": 1}

import json
from typing import Any

import pytest

from lance_dagster.errors import EvaluationError
from lance_dagster.report.summary import build_summary
from lance_dagster_tests.report.tables import baseline, candidate, drift, evolution, iteration, pair, sft_row


def test_samples_are_spread_over_the_new_rows_and_the_same_every_time() -> None:
    parts: dict[str, Any] = {
        "sft": [sft_row(-1), *(sft_row(0, number) for number in range(9))],
        "pairs": [pair(0, 0), pair(0, 1)],
        "ledger": [candidate("response", "low_reward", number=n) for n in range(5)] + [candidate("response")],
    }
    samples = evolution(last=(0.6,), **parts).samples[0]
    assert [row.row_id for row in samples.sft] == ["sft_0_0", "sft_0_4", "sft_0_8"]
    assert [row.row_id for row in samples.pairs] == ["pair_0_0", "pair_0_1"]
    assert [row.row_id for row in samples.dropped] == ["response_0", "response_2", "response_4"]
    assert samples.dropped[0].drop_reason == "low_reward"
    assert evolution(last=(0.6,), **parts).samples[0] == samples


def test_long_texts_are_cut_at_160_characters() -> None:
    samples = evolution(last=(0.6,), sft=[sft_row(0, prompt="é" * 161, response="x" * 160)]).samples[0]
    assert samples.sft[0].prompt == "é" * 159 + "…"
    assert samples.sft[0].response == "x" * 160


def test_the_json_holds_every_figure_and_survives_a_round_trip() -> None:
    summary = evolution(ledger=[candidate("response", "low_reward")], drifts=[drift(0)], notes=["seed 0"])
    value = summary.to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["scores"][-1]["against_initial"]["value"] == pytest.approx(0.12)
    assert value["scores"][-1]["tasks"][0]["stderr"] == 0.03
    assert value["noise_floor"] == pytest.approx(0.01)
    assert value["funnels"][0]["kinds"][1]["dropped"] == [{"name": "low_reward", "rows": 1}]
    assert value["drift"][0]["kl"] == 0.02
    assert value["notes"] == ["seed 0"]


def test_drift_that_is_not_finite_is_refused() -> None:
    with pytest.raises(EvaluationError, match="drift of iteration 000 against base is not finite"):
        evolution(last=(0.6,), drifts=[drift(0, kl=float("inf"))])


@pytest.mark.parametrize("numbers", [(1, 0), (0, 0)])
def test_iterations_out_of_order_are_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="in order, each once"):
        build_summary("x", "lance", baseline(0.6, 0.5, 0.5), [iteration(number) for number in numbers])

"""With standard errors of 3 points, a change is beyond noise from 8.5 points on."""

import pytest

from lance_dagster.report.summary import build_summary
from lance_dagster_tests.report.tables import after, baseline, evolution, iteration


def test_no_iteration_yet() -> None:
    summary = evolution(base=0.60, initial=0.50, last=())
    assert summary.headline == (
        "No iteration is evaluated yet: the untouched base scores 60.0 ± 3.0 % and M_0, after SFT on the seed, "
        "50.0 ± 3.0 %, \N{MINUS SIGN}10.0 ± 4.2 points against the base (beyond noise)."
    )


def test_a_gain_over_m0_that_leaves_the_model_below_the_base_is_called_a_repair() -> None:
    summary = evolution(base=0.60, initial=0.45, last=(0.50, 0.57))
    assert summary.headline == (
        "After iteration 001, M_2 scores 57.0 ± 3.0 %: +12.0 ± 4.2 points against M_0 (beyond noise) and "
        "\N{MINUS SIGN}3.0 ± 4.2 points against the untouched base (within noise); the last model stays below the "
        "untouched base, so the gain over M_0 is a repair of what SFT on the seed lost."
    )


# means of the base, of M_0 and of the last checkpoint
CASES = {
    (0.50, 0.40, 0.65): "a gain over both.",
    (0.60, 0.35, 0.50): "the last model stays below the untouched base, so the gain over M_0 is a repair of what "
    "SFT on the seed lost.",
    (0.60, 0.50, 0.65): "nothing beyond noise was gained over the untouched base, so the gain over M_0 is a repair of "
    "what SFT on the seed lost.",
    (0.51, 0.50, 0.59): "nothing beyond noise was gained over the untouched base.",
    (0.50, 0.52, 0.55): "nothing beyond noise was gained over M_0.",
    (0.60, 0.50, 0.52): "nothing beyond noise was gained over M_0, and the last model stays below the untouched base.",
    (0.40, 0.60, 0.62): "nothing beyond noise was gained over M_0: SFT on the seed explains the gain over the "
    "untouched base.",
    (0.30, 0.60, 0.45): "the iterations made M_0 worse.",
    (0.60, 0.60, 0.45): "the iterations made M_0 worse and the last model stays below the untouched base.",
}


@pytest.mark.parametrize(("means", "verdict"), CASES.items(), ids=map(str, CASES))
def test_the_verdict_follows_from_the_figures(means: tuple[float, float, float], verdict: str) -> None:
    base, initial, last = means
    summary = evolution(base=base, initial=initial, again=initial + 0.005, last=(0.5, last))
    assert summary.headline.split("; ")[1] == verdict


def test_missing_standard_errors_forbid_a_verdict() -> None:
    tables = [iteration(0, after(0, sft=0.5, dpo=(0.9, None)))]
    text = build_summary("x", "lance", baseline(0.6, 0.5, 0.51), tables).headline
    assert "+40.0 points against M_0 (noise unknown)" in text
    assert text.endswith("the evaluation gives no standard error, so this cannot be told from noise.")

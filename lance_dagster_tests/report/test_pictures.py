import io
import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from lance_dagster.records import CANDIDATE_LEDGER, table_of
from lance_dagster.report import pictures
from lance_dagster.report.summary import build_summary
from lance_dagster_tests.report.tables import after, baseline, candidate, evolution, iteration


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(png), format="png"))[..., :3]


def area(png: bytes, colour: str) -> int:
    """Number of pixels of exactly this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(pixels(png) - wanted).max(axis=2) < 0.01).sum())


@pytest.mark.parametrize(
    "picture",
    [
        lambda: pictures.learning_curve(evolution(last=())),
        lambda: pictures.learning_curve(evolution(last=[0.6] * 40)),
        lambda: pictures.funnel(evolution(ledger=[candidate("response", "low_reward")])),
        lambda: pictures.funnel(evolution()),
        lambda: pictures.ledger_funnel(0, table_of([candidate("instruction", "similar")], CANDIDATE_LEDGER)),
        lambda: pictures.ledger_funnel(0, table_of([], CANDIDATE_LEDGER)),
        lambda: pictures.score_histogram(pa.table({"score": [0.0, 7.5, 10.0, None]}), "reward"),
        lambda: pictures.score_histogram(pa.table({"score": pa.array([], pa.float64())}), "reward"),
        lambda: pictures.loss_curve([{"step": 1, "loss": 0.69}, {"step": 2, "loss": 0.4}], "DPO $000"),
    ],
    ids=[
        "no iterations",
        "many iterations",
        "funnel",
        "empty funnel",
        "one ledger",
        "no rows",
        "histogram",
        "empty histogram",
        "loss",
    ],
)
def test_every_picture_is_drawn_at_900_by_500_without_a_warning(picture: Callable[[], bytes]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(picture()).shape == (500, 900, 3)


def test_a_funnel_of_many_iterations_grows_taller() -> None:
    height, width, _ = pixels(pictures.funnel(evolution(last=[0.6] * 20))).shape
    assert width == 900
    assert height > 1000


def test_dollar_signs_in_names_are_no_formulas() -> None:
    summary = build_summary(
        "x", "lance", baseline(0.6, 0.5, 0.5, task="a$_$b"), [iteration(0, after(0, sft=0.5, dpo=0.6, task="a$_$b"))]
    )
    assert pictures.learning_curve(summary)
    assert pictures.funnel(evolution(ledger=[candidate("response", "bad $\\frac$ text")]))
    assert pictures.score_histogram(pa.table({"score": [1.0]}), "$\\frac$")


def test_sft_and_dpo_points_have_colours_of_their_own() -> None:
    drawn = pictures.learning_curve(evolution(last=(0.55, 0.62)))
    without = pictures.learning_curve(evolution(last=()))
    for colour in (pictures.BLUE, pictures.ORANGE):
        assert area(drawn, colour) > 20
        assert area(without, colour) == 0


def test_the_kept_bar_is_as_long_as_its_share() -> None:
    def kept_area(kept: int) -> int:
        ledger = [candidate("response", None if n < kept else "low_reward", number=n) for n in range(8)]
        return area(pictures.funnel(evolution(last=(0.6,), ledger=ledger)), pictures.BLUE)

    one, two, four = (kept_area(kept) for kept in (1, 2, 4))
    assert one > 1000
    assert four - two == pytest.approx(2 * (two - one), rel=0.03)


def test_a_score_outside_its_range_is_refused_rather_than_left_out() -> None:
    with pytest.raises(ValueError, match=r"0\.\.10, got \[11\.0\]"):
        pictures.score_histogram(pa.table({"score": [11.0, 3.0]}), "reward")


def test_importing_the_report_does_not_load_matplotlib() -> None:
    code = "import sys, lance_dagster.report.write; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_figure_is_left_in_pyplot() -> None:
    import matplotlib.pyplot as plt

    pictures.draw(evolution())
    assert plt.get_fignums() == []

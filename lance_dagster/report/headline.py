"""One sentence that says what the experiment gained, computed from the scores."""

from __future__ import annotations

from collections.abc import Sequence

from lance_dagster.report.scores import BASELINE_STAGES, Change, ScoreRow


def headline(scores: Sequence[ScoreRow]) -> str:
    """The last checkpoint against M_0 and the untouched base, in points, and whether that is more than noise."""
    base, initial, last = scores[0], scores[1], scores[-1]
    if last.stage in BASELINE_STAGES:
        change = _worth(initial.against_base, "the base")
        return (
            f"No iteration is evaluated yet: the untouched base scores {percent(base.mean, base.stderr)} and M_0, "
            f"after SFT on the seed, {percent(initial.mean, initial.stderr)}, {change}."
        )
    name = f"M_{last.iteration + 1}" if last.stage == "dpo" else last.label
    return (
        f"After iteration {last.iteration:03d}, {name} scores {percent(last.mean, last.stderr)}: "
        f"{_worth(last.against_initial, 'M_0')} and {_worth(last.against_base, 'the untouched base')}; "
        f"{_verdict(last.against_initial, last.against_base, initial.against_base)}."
    )


def percent(value: float, stderr: float | None) -> str:
    """A share of 1 as a percentage: '58.3 ± 1.2 %'."""
    return f"{100 * value:.1f} %" if stderr is None else f"{100 * value:.1f} ± {100 * stderr:.1f} %"


def points(change: Change) -> str:
    """A change in points: '+8.3 ± 2.1'; a change that rounds to nothing has no sign."""
    value = f"{100 * change.value:+.1f}".replace("-", "\N{MINUS SIGN}")
    value = "0.0" if value[1:] == "0.0" else value
    return value if change.stderr is None else f"{value} ± {100 * change.stderr:.1f}"


def _worth(change: Change, against: str) -> str:
    noise = {True: "beyond noise", False: "within noise", None: "noise unknown"}[change.beyond_noise]
    return f"{points(change)} points against {against} ({noise})"


def _direction(change: Change) -> int:
    """1 or -1 for a gain or a loss beyond noise, 0 within it."""
    return 0 if not change.beyond_noise else (1 if change.value > 0 else -1)


def _verdict(gain: Change, over_base: Change, initial_over_base: Change) -> str:
    if gain.beyond_noise is None or over_base.beyond_noise is None:
        return "the evaluation gives no standard error, so this cannot be told from noise"
    below = "the last model stays below the untouched base"
    if _direction(gain) < 0:
        return "the iterations made M_0 worse" + (f" and {below}" if over_base.value < 0 else "")
    if _direction(gain) == 0:
        nothing = "nothing beyond noise was gained over M_0"
        if _direction(over_base) > 0:
            return f"{nothing}: SFT on the seed explains the gain over the untouched base"
        return nothing + (f", and {below}" if over_base.value < 0 else "")
    repair = "the gain over M_0 is a repair of what SFT on the seed lost"
    if over_base.value < 0:
        return f"{below}, so {repair}"
    if _direction(over_base) > 0:
        return "a gain over both"
    if _direction(initial_over_base) < 0:
        return f"nothing beyond noise was gained over the untouched base, so {repair}"
    return "nothing beyond noise was gained over the untouched base"

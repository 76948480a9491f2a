"""The pictures of a report, as PNG bytes of 900 x 500 pixels (a funnel of many iterations is taller).

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; kinds also differ by marker or hatch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.report.funnel import KindFunnel, kind_funnels
from lance_dagster.report.scores import ScoreRow
from lance_dagster.report.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, VERMILLION, GREY = "#0072B2", "#E69F00", "#D55E00", "#767676"
DROP_COLOURS = ("#E69F00", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
DASHES = (0, (6, 3))
HATCHES = ("", "///", "...", "xxx")
TICKS = 16  # checkpoints that can be named under the curve before the names touch


@dataclass(frozen=True)
class Pictures:
    """PNG bytes; ``funnel`` is None while there is no iteration."""

    learning_curve: bytes
    funnel: bytes | None


def draw(summary: Summary) -> Pictures:
    """All pictures of a summary."""
    return Pictures(learning_curve(summary), funnel(summary) if summary.funnels else None)


def learning_curve(summary: Summary) -> bytes:
    """Mean score in percent (bars of one standard error) of M_0 and each SFT and DPO checkpoint, over the base."""
    base, initial, *_ = summary.scores
    curve = [initial, *(row for row in summary.scores if row.stage in ("sft", "dpo"))]
    figure, axes = _canvas()
    if initial.stderr is not None:
        low, high = (100 * (initial.mean + side * 2 * initial.stderr) for side in (-1, 1))
        axes.axhspan(low, high, color="#BBBBBB", alpha=0.35, linewidth=0, label="noise: M₀ ± 2 standard errors")
    level = 100 * base.mean
    axes.axhline(level, color=VERMILLION, linestyle=DASHES, linewidth=1.8, label=f"untouched base {level:.1f} %")
    axes.plot(range(len(curve)), [100 * row.mean for row in curve], color="#BBBBBB", linewidth=1.5, zorder=1.5)
    looks = {"initial": ("D", GREY, GREY), "sft": ("o", "white", ORANGE), "dpo": ("s", BLUE, BLUE)}
    names = {"initial": "M₀", "sft": "after SFT", "dpo": "after DPO"}
    for stage, (marker, face, edge) in looks.items():
        _points(axes, curve, stage, marker=marker, markerfacecolor=face, color=edge, label=names[stage])
    step = 1 + (len(curve) - 1) // TICKS
    axes.set_xticks(range(0, len(curve), step), [_tick(row) for row in curve[::step]], fontsize=12)
    axes.set_xlim(-0.5, max(1.5, len(curve) - 0.5))
    axes.margins(y=0.12)
    axes.set_xlabel("checkpoint")
    count = len(base.tasks)
    of = base.tasks[0].task if count == 1 else f"mean over {count} tasks"
    axes.set_ylabel(f"{of}, %", parse_math=False)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return _png(figure)


def funnel(summary: Summary) -> bytes:
    """Responses and flawed responses of each iteration: kept, and dropped by reason."""
    return _fates(
        [
            (f"{each.iteration:03d}  {kind.kind.replace('_', ' ')}", kind)
            for each in summary.funnels
            for kind in each.kinds
            if kind.kind != "instruction"
        ]
    )


def ledger_funnel(iteration: int, ledger: pa.Table) -> bytes:
    """One candidate ledger: the rows of each kind, kept, and dropped by reason."""
    return _fates([(kind.kind.replace("_", " "), kind) for kind in kind_funnels(iteration, ledger)])


def _fates(bars: list[tuple[str, KindFunnel]]) -> bytes:
    reasons = list(dict.fromkeys(count.name for _, kind in bars for count in kind.dropped))
    figure, axes = _canvas(height=max(5.0, 0.34 * len(bars) + 1.6))
    kept = [kind.kept for _, kind in bars]
    handles = [axes.barh(range(len(bars)), kept, color=BLUE, height=0.7)[0]]
    left = kept
    for index, reason in enumerate(reasons):
        rows = [sum(count.rows for count in kind.dropped if count.name == reason) for _, kind in bars]
        handles.append(
            axes.barh(
                range(len(bars)),
                rows,
                left=left,
                height=0.7,
                color=DROP_COLOURS[index % len(DROP_COLOURS)],
                hatch=HATCHES[index // len(DROP_COLOURS) % len(HATCHES)],
                edgecolor="white",
                linewidth=0.5,
            )[0]
        )
        left = [start + more for start, more in zip(left, rows, strict=True)]
    widest = max(left)
    for position, (total, (_, kind)) in enumerate(zip(left, bars, strict=True)):
        axes.text(total + widest * 0.01, position, f"{kind.kept} of {total}", va="center", fontsize=10, color="#333333")
    axes.set_xlim(0, max(1, widest * 1.13))
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("rows generated: kept, then dropped by reason")
    names = ["kept", *(reason.replace("_", " ") for reason in reasons)]
    columns = max(1, min(6, 100 // (7 + max(map(len, names)))))  # what fits into the width
    legend = figure.legend(handles, names, loc="outside upper center", ncols=columns, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _png(figure)


def score_histogram(table: pa.Table, title: str) -> bytes:
    """Histogram of the column ``score`` (0..10, half a point per bar); rows without a score are counted below it."""
    from matplotlib.ticker import MaxNLocator

    scores = table["score"].drop_null().to_pylist()
    outside = [score for score in scores if not 0 <= score <= 10]
    if outside:
        raise ValueError(f"score must lie in 0..10, got {outside[:3]} ({len(outside)} rows)")
    figure, axes = _canvas()
    axes.hist(scores, bins=20, range=(0, 10), color=BLUE, edgecolor="white", linewidth=1)
    if scores:
        mean = pc.mean(table["score"]).as_py()
        axes.axvline(mean, color=VERMILLION, linestyle=DASHES, linewidth=1.8)
        above = axes.get_xaxis_transform()
        axes.text(mean, 1.015, f"mean {mean:.2f}", transform=above, ha="center", color=VERMILLION)
    else:
        axes.text(5, 0.5, "no row has a score", ha="center", va="center", color=GREY)
    axes.set_title(title, loc="left", pad=24, parse_math=False)
    axes.set_xlim(0, 10)
    axes.set_ylim(bottom=0, top=None if scores else 1)
    axes.set_xticks(range(11))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"score ({len(scores)} rows; {table['score'].null_count} more have none)")
    axes.set_ylabel("rows")
    return _png(figure)


def loss_curve(curve: Sequence[dict[str, float]], title: str) -> bytes:
    """PNG of a training curve: ``curve`` has a point per logged step, with at least step and loss."""
    figure, axes = _canvas()
    axes.plot([point["step"] for point in curve], [point["loss"] for point in curve], color=BLUE, linewidth=1.6)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(title, loc="left", parse_math=False)
    return _png(figure)


def _points(axes: Axes, curve: list[ScoreRow], stage: str, **look: Any) -> None:
    at = [position for position, row in enumerate(curve) if row.stage == stage]
    if not at:
        return
    means = [100 * curve[position].mean for position in at]
    errors = [100 * (curve[position].stderr or 0.0) for position in at]  # no bar where the error is unknown
    axes.errorbar(at, means, yerr=errors, linestyle="", markersize=8, markeredgewidth=1.8, capsize=4, **look)


def _tick(row: ScoreRow) -> str:
    number = row.iteration + 1 if row.stage in ("initial", "dpo") else row.iteration
    return f"$M_{{{number}}}^{{S}}$" if row.stage == "sft" else f"$M_{{{number}}}$"


def _canvas(height: float = 5.0) -> tuple[Figure, Axes]:
    """A figure of its own: nothing is shared with pyplot, so it is freed with its last reference."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)  # inches
    figure = Figure(figsize=(9, height), dpi=100, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    figure.clear()
    return buffer.getvalue()

"""A summary as Markdown, HTML or plain text. Generated text is data everywhere: it cannot become markup."""

from __future__ import annotations

import base64
import re
import textwrap
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from lance_dagster.report import cells
from lance_dagster.report.cells import Cells
from lance_dagster.report.pictures import Pictures
from lance_dagster.report.summary import Summary

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]|~#!$])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINE_END = re.compile(r"\r\n?|[\n\x0b\x0c\x85\u2028\u2029]")
_CHECKPOINT = re.compile(r"\bM_(\d+)(?:\^([SD]))?")
_COMMAND = re.compile(r"`([^`]+)`")


def to_markdown(summary: Summary) -> str:
    """Headline, scores, funnel and samples as GitHub Markdown, for asset metadata."""
    parts = [f"**{_inline(summary.headline)}**", *map(_inline, summary.out_of_date)]
    parts += [_pipe_table(cells.score_cells(summary))]
    if summary.funnels:
        parts += ["### Funnel", *map(_pipe_table, (cells.seed_cells(summary), cells.funnel_cells(summary)))]
        parts += [_pipe_table(cells.set_cells(summary))]
    if summary.drift:
        parts += ["### Drift", _pipe_table(cells.drift_cells(summary))]
    if summary.costs:
        parts += ["### Generation", _pipe_table(cells.cost_cells(summary))]
    for samples in summary.samples:
        parts += [f"### Samples of iteration {samples.iteration:03d}"]
        parts += [_pipe_table(table) for table in cells.sample_cells(samples) if table.rows]
    notes = (*cells.reading_notes(summary), *summary.notes)
    parts += ["### Notes", "\n".join(f"- {_inline(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def markdown_image(png: bytes, alt: str) -> str:
    """A picture inside Markdown, as a data: URL."""
    return f"![{_inline(alt)}]({_data_url(png)})"


def to_html(summary: Summary, pictures: Pictures) -> str:
    """One self-contained page: inline style, data: images, no script, nothing loaded from elsewhere."""
    return TEMPLATES.get_template("report.html.j2").render(summary=summary, pictures=pictures, cells=cells)


def to_text(summary: Summary) -> str:
    """Headline, scores and funnel for a terminal: ASCII and ±, at fixed width."""
    parts = ["\n".join(textwrap.wrap(_ascii(text), 100)) for text in (summary.headline, *summary.out_of_date)]
    parts += [_fixed_table(cells.score_cells(summary))]
    if summary.funnels:
        tables = (cells.seed_cells(summary), cells.funnel_cells(summary), cells.set_cells(summary))
        parts += [_fixed_table(table) for table in tables]
    if summary.costs:
        parts += [_fixed_table(cells.cost_cells(summary))]
    return "\n\n".join(parts) + "\n"


def _pipe_table(table: Cells) -> str:
    rule = ["---:" if side == "r" else ":---" for side in table.align]
    lines = [[_inline(cell) for cell in row] for row in (table.header, *table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def _inline(text: str) -> str:
    """Text that Markdown shows as it is, on one line; a line end becomes a visible sign."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _LINE_END.sub(" \N{DOWNWARDS ARROW WITH CORNER LEFTWARDS} ", text))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN_SPECIAL.sub(r"\\\1", text)


def _fixed_table(table: Cells) -> str:
    lines = [[_ascii(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = (
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(line, widths, table.align, strict=True)
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def _ascii(text: str) -> str:
    """ASCII and ±; everything else, control characters included, as an escape."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")
    return "".join(c if c == "±" or " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text)


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _typeset(text: str) -> Markup:
    """Escaped text in which M_1^S is set with subscript and superscript, and `commands` as code."""
    return Markup(_COMMAND.sub(r"<code>\1</code>", _CHECKPOINT.sub(_checkpoint_html, str(escape(text)))))


def _checkpoint_html(match: re.Match[str]) -> str:
    stage = f"<sup>{match[2]}</sup>" if match[2] else ""
    return f'<span class="m">M<sub>{match[1]}</sub>{stage}</span>'


def printable(text: str) -> str:
    """Text for HTML, where control characters are not allowed; line ends stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _LINE_END.sub("\n", text))


TEMPLATES.filters |= {"typeset": _typeset, "data_url": _data_url, "printable": printable}

"""A trace as plain text, the lineage as a page. Generated text is data here too."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from lance_dagster.report.lineage import Lineage, round_cells
from lance_dagster.report.render import TEMPLATES, printable
from lance_dagster.report.trace import Node, Trace

_WIDTH = 100
_LONGEST = 2000  # characters of one text


def lineage_to_html(lineage: Lineage) -> str:
    """One self-contained page, like the report."""
    return TEMPLATES.get_template("lineage.html.j2").render(lineage=lineage, rounds=round_cells(lineage))


def trace_to_text(trace: Trace) -> str:
    """The row, indented below it what it was made from, and at the end the checkpoints that were trained on it."""
    lines = [*_node(trace.node, "", 0, set()), ""]
    if all(use.model is None for use in trace.uses):
        lines.append("No checkpoint was trained on it.")
    for use in trace.uses:
        held = "" if use.row == trace.node.row_id else f", in pair {use.row}"
        if use.model is None:
            lines.append(f"not trained yet: {use.checkpoint}, from {use.table}{held}")
            continue
        version = "" if use.current else ", which held something else then"
        lines.append(f"trained on it: {use.checkpoint}, {use.model}, from {use.table}{held}{version}")
    return "\n".join(lines)


def _node(node: Node, part: str, depth: int, shown_before: set[str]) -> Iterator[str]:
    indent = "    " * depth
    label = f"{part}: " if part else ""
    again = node.row_id in shown_before
    yield f"{indent}{label}{node.what} {printable(node.row_id)}  in {node.table}{', as above' if again else ''}"
    if again:
        return
    shown_before.add(node.row_id)
    for name, text in (*node.texts, *node.facts):
        shown = printable(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")
        first = f"{indent}  {name:<16}"
        for line in shown.split("\n") or [""]:
            wrapped = textwrap.wrap(line, max(40, _WIDTH - len(first))) or [""]
            for piece in wrapped:
                yield f"{first}{piece}".rstrip()
                first = " " * len(first)
    for name, parent in node.parents:
        yield from _node(parent, name, depth + 1, shown_before)

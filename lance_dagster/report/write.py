"""A report on disk: report.html, lineage.html, report.json, learning_curve.png, each replaced whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass

from upath import UPath

from lance_dagster.report.lineage import Lineage
from lance_dagster.report.pictures import draw
from lance_dagster.report.render import to_html
from lance_dagster.report.render_lineage import lineage_to_html
from lance_dagster.report.summary import Summary
from lance_dagster.storage.files import write_bytes, write_json


@dataclass(frozen=True)
class ReportFiles:
    """Where the files of a report lie."""

    html: UPath
    lineage: UPath
    json: UPath
    learning_curve: UPath


def write_report(folder: UPath, summary: Summary, lineage: Lineage) -> ReportFiles:
    """Write the report into ``folder``; its page comes last, so it never shows more than the other files hold."""
    files = ReportFiles(
        folder / "report.html", folder / "lineage.html", folder / "report.json", folder / "learning_curve.png"
    )
    pictures = draw(summary)
    page, lineage_page = to_html(summary, pictures).encode(), lineage_to_html(lineage).encode()
    write_json(files.json, summary.to_json())
    write_bytes(files.learning_curve, pictures.learning_curve)
    write_bytes(files.lineage, lineage_page)
    write_bytes(files.html, page)
    return files

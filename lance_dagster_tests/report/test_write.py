import json
from pathlib import Path

import pytest
from upath import UPath

from lance_dagster.report import write
from lance_dagster.report.lineage import Lineage
from lance_dagster.report.write import write_report
from lance_dagster_tests.report.tables import evolution

NOTHING = Lineage("mini", (), ())


def test_the_report_is_three_files_and_nothing_else(tmp_path: Path) -> None:
    summary = evolution()
    files = write_report(UPath(tmp_path / "new" / "report"), summary, NOTHING)
    assert sorted(path.name for path in files.html.parent.iterdir()) == [
        "learning_curve.png", "lineage.html", "report.html", "report.json",
    ]  # fmt: skip
    assert json.loads(files.json.read_text()) == summary.to_json()
    assert files.learning_curve.read_bytes().startswith(b"\x89PNG")
    assert files.html.read_text().startswith("<!DOCTYPE html>")


def test_a_report_is_replaced_by_a_newer_one(tmp_path: Path) -> None:
    write_report(UPath(tmp_path), evolution(last=()), NOTHING)
    files = write_report(UPath(tmp_path), evolution(last=(0.7,)), NOTHING)
    assert "After iteration 000" in files.html.read_text()


def test_a_page_that_cannot_be_made_leaves_the_old_report_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(UPath(tmp_path), evolution(last=()), NOTHING)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(*_: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr(write, "to_html", broken)
    with pytest.raises(RuntimeError, match="no page"):
        write_report(UPath(tmp_path), evolution(last=(0.7,)), NOTHING)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_report_can_be_written_to_an_object_store() -> None:
    files = write_report(UPath("memory://store/mini/report"), evolution(last=()), NOTHING)
    assert json.loads(files.json.read_bytes())["experiment"] == "mini"

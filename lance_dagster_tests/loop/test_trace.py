"""From rows of a real run back to the seed files, and forward to the checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from lance_dagster.errors import ArtifactError
from lance_dagster.report.render_lineage import trace_to_text
from lance_dagster.report.trace import Node, Trace, Tracer
from lance_dagster_tests.loop.test_faults import copy_of
from lance_dagster_tests.tiny import Tiny


@pytest.fixture(scope="module")
def tracer(evolved: Tiny) -> Tracer:
    return Tracer(evolved.experiment.store, evolved.experiment.settings.iterations)


def every(node: Node) -> Iterator[Node]:
    yield node
    for _, parent in node.parents:
        yield from every(parent)


def seeds_of(trace: Trace) -> list[Node]:
    return [node for node in every(trace.node) if node.what == "seed row"]


def rows(tiny: Tiny, asset: str, partition: str, **wanted: Any) -> list[dict[str, Any]]:
    found = tiny.table(asset, partition).to_pylist()
    return [row for row in found if all(row[name] == value for name, value in wanted.items())]


@pytest.mark.parametrize("iteration", [0, 1])
def test_a_pair_leads_to_its_seed_in_the_seed_file(evolved: Tiny, tracer: Tracer, iteration: int) -> None:
    pair = rows(evolved, "preference_set", "001", iteration=iteration)[0]
    trace = tracer.trace(pair["row_id"])
    assert trace.node.what == "preference pair"
    assert trace.node.table == f"preference_set[{iteration:03d}]"
    assert [side for side, _ in trace.node.parents] == ["chosen", "rejected"]
    assert [parent.row_id for _, parent in trace.node.parents] == pair["parent_ids"]
    source, position = dict(seeds_of(trace)[0].facts)["source"].split(", row ")
    line = Path(evolved.experiment.root, Path(source).name).read_text(encoding="utf-8").splitlines()[int(position)]
    assert json.loads(line)["instruction"] == pair["prompt"]


def test_an_accepted_response_leads_through_its_instruction_to_the_seed(evolved: Tiny, tracer: Tracer) -> None:
    row = rows(evolved, "sft_set", "001", origin="generated")[0]
    trace = tracer.trace(row["row_id"])
    assert [node.what for node in every(trace.node)] == ["response", "new instruction", "seed row"]
    assert [node.row_id for node in every(trace.node)][1:] == [*row["parent_ids"], row["seed_id"]]
    facts = dict(trace.node.facts)
    assert facts["fate"] == "kept"
    assert facts["written by"].startswith(("M_0 (", "M_1 ("))
    assert facts["review 1"].startswith(facts["reward"])


def test_rows_name_the_checkpoints_that_were_trained_on_them(evolved: Tiny, tracer: Tracer) -> None:
    row = rows(evolved, "sft_set", "000", origin="generated")[0]
    assert [use.checkpoint for use in tracer.trace(row["row_id"]).uses] == [
        "sft_checkpoint[000]",
        "sft_checkpoint[001]",
    ]
    pair = rows(evolved, "preference_set", "001", iteration=1)[0]
    [use] = tracer.trace(pair["row_id"]).uses
    assert (use.checkpoint, use.current) == ("dpo_checkpoint[001]", True)
    assert use.model == f"M_2 ({evolved.manifest('dpo_checkpoint', '001')['digest']})"
    flawed = next(i for i in pair["parent_ids"] if rows(evolved, "candidate_ledger", "001", row_id=i))
    assert pair["row_id"] in {use.row for use in tracer.trace(flawed).uses}


def test_a_dropped_row_says_why_and_was_never_trained_on(evolved: Tiny, tracer: Tracer) -> None:
    used = set(pc.list_flatten(evolved.table("preference_set", "001")["parent_ids"]).to_pylist())
    row = next(row for row in rows(evolved, "candidate_ledger", "000", kept=False) if row["row_id"] not in used)
    trace = tracer.trace(row["row_id"])
    assert dict(trace.node.facts)["fate"] == f"dropped at {row['stage']}: {row['drop_reason']}"
    assert trace.uses == ()
    assert "No checkpoint was trained on it." in trace_to_text(trace)


@pytest.mark.parametrize("origin", ["seed", "review"])
def test_replayed_rows_lead_to_the_seed_files(evolved: Tiny, tracer: Tracer, origin: str) -> None:
    row = rows(evolved, "sft_set", "001", origin=origin)[0]
    *_, seed = every(tracer.trace(row["row_id"]).node)
    assert seed.row_id == row["seed_id"]
    assert "jsonl, row " in dict(seed.facts)["source"]


def test_every_kind_of_row_can_be_traced(evolved: Tiny, tracer: Tracer) -> None:
    for asset, column in (("candidate_ledger", "row_id"), ("sft_set", "row_id"), ("preference_set", "row_id")):
        for identity in evolved.table(asset, "001")[column].to_pylist()[::7]:
            trace = tracer.trace(identity)
            assert trace.node.row_id == identity
            assert seeds_of(trace) or "review" in trace.node.what


def test_the_beginning_of_an_id_is_enough_where_it_is_the_only_one(evolved: Tiny, tracer: Tracer) -> None:
    pair = rows(evolved, "preference_set", "001")[0]["row_id"]
    assert tracer.trace(pair[:12]).node.row_id == pair
    with pytest.raises(ArtifactError, match=r"\d+ rows have an id that begins with '.'.*give more of it"):
        tracer.trace(pair[:1])


@pytest.mark.parametrize("row", ["", "  ", "nothing", "0" * 16])
def test_an_unknown_id_is_answered_with_where_ids_are(tracer: Tracer, row: str) -> None:
    with pytest.raises(ArtifactError, match=r"row_id|row id"):
        tracer.trace(row)


def test_a_set_that_was_made_anew_since_is_said(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    path = Path(str(tiny.experiment.store.manifest("dpo_checkpoint", "001")))
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"data": {"preference_set": "another"}}))
    pair = rows(tiny, "preference_set", "001", iteration=1)[0]
    trace = Tracer(tiny.experiment.store, 3).trace(pair["row_id"])
    assert [use.current for use in trace.uses] == [False]
    assert "which held something else then" in trace_to_text(trace)


def test_a_text_for_a_terminal_has_no_control_characters(evolved: Tiny, tmp_path: Path) -> None:
    node = Node("response", "id", "table", (("response", "red \x1b[31m\nnext\x00"),), ())
    text = trace_to_text(Trace(node, ()))
    assert "\x1b" not in text and "\x00" not in text and "next" in text


def test_the_report_comes_with_a_lineage_page(evolved: Tiny) -> None:
    folder = Path(str(evolved.experiment.store.folder))
    page = (folder / "lineage.html").read_text()
    assert 'href="lineage.html"' in (folder / "report.html").read_text()
    for asset, partition in (("sft_checkpoint", "000"), ("dpo_checkpoint", "000"), ("dpo_checkpoint", "001")):
        assert evolved.manifest(asset, partition)["digest"] in page
    summary = json.loads((folder / "report.json").read_text())
    for samples in summary["samples"]:
        for row in [*samples["sft"], *samples["pairs"]]:
            assert f'id="{row["row_id"]}"' in page
    assert "<script" not in page and "http" not in page.split("</head>")[1]


def test_a_checkpoint_that_is_not_there_yet_was_not_trained_on_the_row(evolved: Tiny, tmp_path: Path) -> None:
    tiny = copy_of(evolved, tmp_path)
    Path(str(tiny.experiment.store.manifest("dpo_checkpoint", "001"))).unlink()
    pair = rows(tiny, "preference_set", "001", iteration=1)[0]
    text = trace_to_text(Tracer(tiny.experiment.store, 3).trace(pair["row_id"]))
    assert "not trained yet: dpo_checkpoint[001], from preference_set[001]" in text
    assert "No checkpoint was trained on it." in text

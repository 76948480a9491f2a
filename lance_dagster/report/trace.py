"""From any row back to its seed, and forward to the checkpoints that were trained on it.

Back: a preference pair to its two responses, a response to the instruction that it answers, that to the seed row it was
written from, with its reviews; a seed that a later iteration grew to the generated row that it was. Forward: every SFT
or preference set that holds the row, and the checkpoint of that iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.errors import ArtifactError
from lance_dagster.storage.experiment_store import UNPARTITIONED, ExperimentStore, iteration_key
from lance_dagster.storage.tables import read_table, table_digest

# Tables with the column of their row ids, in the order in which an id is looked up. A seed id occurs in many.
_BY_ITERATION = (
    ("preference_set", "row_id"),
    ("candidate_ledger", "row_id"),
    ("sft_set", "row_id"),
    ("reviewed_seed", "seed_id"),
)
_SEEDS = (("seed_instructions", "seed_id"), ("seed_reviews", "seed_id"))
_TRAINED = (("sft_set", "sft_checkpoint"), ("preference_set", "dpo_checkpoint"))
_KINDS = {"instruction": "new instruction", "response": "response", "flawed_response": "flawed response"}


@dataclass(frozen=True)
class Node:
    """One row with what is known of it, and the rows that it was made from, each with its part in this one."""

    what: str
    row_id: str
    table: str  # asset, with its iteration in brackets
    texts: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    parents: tuple[tuple[str, Node], ...] = ()


@dataclass(frozen=True)
class Use:
    """A set that holds the row, and the checkpoint that was trained on it; ``model`` is None while there is none.

    ``current``: the set holds now what the checkpoint was trained on.
    """

    row: str  # the row itself, or the pair that holds it
    table: str
    checkpoint: str
    model: str | None
    current: bool


@dataclass(frozen=True)
class Trace:
    """Where a row comes from and which checkpoints have seen it."""

    node: Node
    uses: tuple[Use, ...]


class Tracer:
    """Traces rows of one experiment, over iterations 0 to ``iterations`` - 1 as far as they are there."""

    def __init__(self, store: ExperimentStore, iterations: int) -> None:
        self.store = store
        self.iterations = iterations
        self._tables: dict[tuple[str, str | None], pa.Table | None] = {}
        self._digests: dict[tuple[str, int], str] = {}

    def trace(self, row: str) -> Trace:
        """The trace of a row by its id or the beginning of it; ArtifactError if none or several begin so."""
        asset, iteration, column, identity = self._find(row)
        found = self._row(asset, iteration, column, identity)
        assert found is not None
        node = self._node(asset, iteration, found)
        return Trace(node, tuple(self._uses(node.row_id)))

    # Looking rows up

    def _find(self, row: str) -> tuple[str, int | None, str, str]:
        """Where a row lies: table, iteration, column of its id, its whole id."""
        if not row.strip():
            raise ArtifactError("a row id is needed, or the beginning of one: report.html and the tables name them")
        places: dict[str, tuple[str, int | None, str, str]] = {}
        searched: list[tuple[str, str, int | None]] = [
            (name, column, t) for name, column in _BY_ITERATION for t in reversed(range(self.iterations))
        ]
        for name, column, iteration in [*searched, *((name, column, None) for name, column in _SEEDS)]:
            table = self._table(name, iteration)
            if table is None:
                continue
            for identity in pc.unique(table[column].filter(pc.starts_with(table[column], row))).to_pylist():
                places.setdefault(identity, (name, iteration, column, identity))
            if row in places:
                return places[row]
        if len(places) == 1:
            return next(iter(places.values()))
        if not places:
            raise ArtifactError(
                f"no row of {self.store.experiment} has an id that begins with {row!r}: ids are the column row_id of "
                "its tables (of seeds: seed_id), and the lineage page of the report shows some"
            )
        some = ", ".join(sorted(places)[:5])
        raise ArtifactError(f"{len(places)} rows have an id that begins with {row!r}: {some}; give more of it")

    def _table(self, name: str, iteration: int | None) -> pa.Table | None:
        partition = None if iteration is None else iteration_key(iteration)
        if (name, partition) not in self._tables:
            path = self.store.table(name, partition)
            self._tables[name, partition] = read_table(path) if path.exists() else None
        return self._tables[name, partition]

    def _row(self, name: str, iteration: int | None, column: str, identity: str) -> dict[str, Any] | None:
        table = self._table(name, iteration)
        if table is None:
            return None
        rows: list[dict[str, Any]] = table.filter(pc.equal(table[column], identity)).slice(0, 1).to_pylist()
        return rows[0] if rows else None

    # Back

    def _node(self, asset: str, iteration: int | None, row: dict[str, Any]) -> Node:
        if asset == "preference_set":
            return self._pair(row)
        if asset == "candidate_ledger":
            return self._generated(row)
        if asset == "sft_set":
            return self._sft_row(row, iteration)
        if asset == "reviewed_seed":
            return self._reviewed(row, iteration)
        return self._seed(asset, row)

    def _pair(self, row: dict[str, Any]) -> Node:
        sides = []
        for side, identity in zip(("chosen", "rejected"), row["parent_ids"], strict=True):
            parent = self._ancestor(identity, row["iteration"])
            if parent is not None:
                sides.append((side, parent))
        return Node(
            "preference pair",
            row["row_id"],
            _place("preference_set", row["iteration"]),
            tuple((name, row[name]) for name in ("prompt", "chosen", "rejected")),
            (
                ("chosen reward", _score(row["chosen_score"])),
                ("rejected reward", _score(row["rejected_score"])),
                ("policy model", self._model(row["model_digest"])),
            ),
            tuple(sides),
        )

    def _generated(self, row: dict[str, Any]) -> Node:
        iteration, sampling = row["iteration"], row["sampling"]
        parent = self._ancestor(row["parent_ids"][0], iteration) if row["parent_ids"] else None
        part = "the instruction" if row["kind"] == "response" else "the seed row"
        texts = [("instruction", row["instruction"])]
        texts += [] if row["kind"] == "instruction" else [("response", row["response"] or "")]
        fate = "kept" if row["kept"] else f"dropped at {row['stage']}: {row['drop_reason']}"
        facts = [
            ("written by", f"{self._model(row['model_digest'])}, {row['method']}, prompts {row['prompt_template']}"),
            (
                "sampling",
                f"temperature {sampling['temperature']:g}, top_p {sampling['top_p']:g}, seed {sampling['seed']}, "
                f"finished: {row['finish_reason']}",
            ),
            ("fate", fate),
            *_reviews(row),
        ]
        if row["rouge_l"] is not None:
            facts.append(("ROUGE-L", f"{row['rouge_l']:.2f} against {row['rouge_l_against']}"))
        return Node(
            _KINDS[row["kind"]],
            row["row_id"],
            _place("candidate_ledger", iteration),
            tuple(texts),
            tuple(facts),
            () if parent is None else ((part, parent),),
        )

    def _sft_row(self, row: dict[str, Any], iteration: int | None) -> Node:
        """A row that only the training set has: a seed row or a review that is replayed."""
        parents = [self._ancestor(identity, self.iterations - 1) for identity in row["parent_ids"]]
        return Node(
            f"replayed {row['origin']} row",
            row["row_id"],
            _place("sft_set", iteration),
            (("prompt", row["prompt"]), ("response", row["response"])),
            (),
            tuple(("the seed row", parent) for parent in parents if parent is not None),
        )

    def _reviewed(self, row: dict[str, Any], iteration: int | None) -> Node:
        facts = [("reviewed by", self._model(row["model_digest"])), ("branch", row["branch"]), *_reviews(row)]
        if row["origin"] == "seed":
            source = self._row("seed_instructions", None, "seed_id", row["seed_id"])
            facts += [("source", f"{source['source']}, row {source['position']}")] if source else []
            parents: tuple[tuple[str, Node], ...] = ()
        else:
            grown = [self._ancestor(identity, (iteration or 0) - 1) for identity in row["parent_ids"]]
            parents = tuple(("grown from", each) for each in grown if each is not None)
        return Node(
            "seed row",
            row["seed_id"],
            _place("reviewed_seed", iteration),
            (("instruction", row["instruction"]), ("response", row["response"])),
            tuple(facts),
            parents,
        )

    def _seed(self, asset: str, row: dict[str, Any]) -> Node:
        facts = [("source", f"{row['source']}, row {row['position']}")]
        if asset == "seed_reviews":
            facts += [("score", _score(row["score"])), ("rationale", row["rationale"])]
        return Node(
            "review seed row" if asset == "seed_reviews" else "seed row",
            row["seed_id"],
            asset,
            (("instruction", row["instruction"]), ("response", row["response"])),
            tuple(facts),
        )

    def _ancestor(self, identity: str, newest: int) -> Node | None:
        """The row with this id as iteration ``newest`` or the nearest one before it knew it."""
        for iteration in range(newest, -1, -1):
            row = self._row("candidate_ledger", iteration, "row_id", identity)
            if row is not None:
                return self._generated(row)
            row = self._row("reviewed_seed", iteration, "seed_id", identity)
            if row is not None:
                return self._reviewed(row, iteration)
        for asset, column in _SEEDS:
            row = self._row(asset, None, column, identity)
            if row is not None:
                return self._seed(asset, row)
        return None

    # Forward

    def _uses(self, row: str) -> Iterator[Use]:
        for iteration in range(self.iterations):
            for name, checkpoint in _TRAINED:
                table = self._table(name, iteration)
                if table is None:
                    continue
                for identity in _holding(table, row, pairs=name == "preference_set"):
                    yield self._use(identity, name, checkpoint, iteration)

    def _use(self, row: str, table: str, checkpoint: str, iteration: int) -> Use:
        key = iteration_key(iteration)
        place = _place(checkpoint, iteration)
        if not self.store.manifest(checkpoint, key).exists():
            return Use(row, _place(table, iteration), place, None, False)
        manifest = self.store.checkpoint(checkpoint, key)
        return Use(
            row,
            _place(table, iteration),
            place,
            self._model(manifest.digest),
            manifest.data.get(table) == self._digest_of(table, iteration),
        )

    def _digest_of(self, name: str, iteration: int) -> str:
        if (name, iteration) not in self._digests:
            self._digests[name, iteration] = table_digest(self._table(name, iteration))
        return self._digests[name, iteration]

    def rows_of(self, name: str, iteration: int) -> int:
        """Rows of a table of an iteration; 0 if it is not there."""
        table = self._table(name, iteration)
        return 0 if table is None else int(table.num_rows)

    # Models

    def _model(self, digest: str | None) -> str:
        if digest is None:
            return "no model"
        return f"{self.models[digest]} ({digest})" if digest in self.models else f"a model that is no more ({digest})"

    @cached_property
    def models(self) -> dict[str, str]:
        """Digest of each checkpoint that is there, with its name in the paper's terms; the first that has it."""
        names: dict[str, str] = {}
        entries = [("base_checkpoint", UNPARTITIONED, "M"), ("initial_checkpoint", UNPARTITIONED, "M_0")]
        for iteration in range(self.iterations):
            key = iteration_key(iteration)
            entries += [("sft_checkpoint", key, f"M_{iteration}^S"), ("dpo_checkpoint", key, f"M_{iteration + 1}")]
        for asset, key, name in entries:
            if self.store.manifest(asset, key).exists():
                names.setdefault(self.store.checkpoint(asset, key).digest, name)
        return names


def _holding(table: pa.Table, row: str, *, pairs: bool) -> list[str]:
    """Ids of the rows of a set that are the row, or pairs of it."""
    found = set(table["row_id"].filter(pc.equal(table["row_id"], row)).to_pylist())
    if pairs:
        parents = table["parent_ids"].combine_chunks()
        at = pc.list_parent_indices(parents).filter(pc.equal(pc.list_flatten(parents), row))
        found |= set(table["row_id"].take(at).to_pylist())
    return sorted(found)


def _place(asset: str, iteration: int | None) -> str:
    return asset if iteration is None else f"{asset}[{iteration_key(iteration)}]"


def _reviews(row: dict[str, Any]) -> list[tuple[str, str]]:
    if not row["scores"]:
        return []
    lines = [("reward", _score(row["score"]))]
    lines += [
        (f"review {number}", f"{_score(score)}: {rationale or ''}")
        for number, (score, rationale) in enumerate(zip(row["scores"], row["rationales"], strict=True), 1)
    ]
    return lines


def _score(score: float | None) -> str:
    return "missing" if score is None else f"{score:g}"

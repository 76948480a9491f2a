"""The filters of one iteration over all its candidates (section 3.3, data filtering), in bounded memory.

Steps, each for the rows that the ones before left: ``text`` (rules on the row alone), ``duplicate``,
``contamination``, ``rouge_l``. Texts pass by in batches; what stays in memory of a row is a few numbers, two hashes and
its words as numbers. A response goes with its instruction, at the step at which that one was dropped.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lance_dagster.construction.fates import Fates, Stage
from lance_dagster.construction.filters.contamination import CONTAMINATED, EvaluationIndex, Overlap
from lance_dagster.construction.filters.pool import (
    ANYWHERE,
    Digests,
    PoolRows,
    as_digests,
    digest,
    prompt_digest,
    text_digest,
)
from lance_dagster.construction.filters.rouge_l import Floats, tokens_of
from lance_dagster.construction.filters.rules import Generated, Rules
from lance_dagster.construction.filters.shelves import Comparison, Shelves
from lance_dagster.construction.filters.similarity_join import (
    NOBODY,
    SimilarityJoin,
    Verdicts,
    keep_first_by_group,
)
from lance_dagster.construction.filters.words import Ints, Vocabulary, WordRows, split_words, unseen_by_rouge_score
from lance_dagster.records import CONTAMINATION_HITS, table_of
from lance_dagster.settings import FilterSettings

PARENT_DROPPED, DUPLICATE, SIMILAR = "parent_dropped", "duplicate", "similar"
_NO_PARENT = -1

RowSource = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
"""Opens the candidates anew with these columns. Schema CANDIDATES."""


class SeedTexts(NamedTuple):
    """What candidates of a seed are compared with."""

    instruction: str
    response: str


@dataclass
class _Lane:
    """Rows that are compared among each other: new instructions, or responses of both kinds."""

    positions: array[int] = field(default_factory=lambda: array("q"))
    prompts: bytearray = field(default_factory=bytearray)
    texts: bytearray = field(default_factory=bytearray)
    flat: array[int] = field(default_factory=lambda: array("i"))
    ends: array[int] = field(default_factory=lambda: array("q", [0]))

    def append(self, position: int, prompt: bytes, text: bytes, words: list[int]) -> None:
        self.positions.append(position)
        self.prompts += prompt
        self.texts += text
        self.flat.extend(words)
        self.ends.append(len(self.flat))


@dataclass(frozen=True)
class Lane:
    """Rows that are compared among each other, and the pool that was there before them.

    ``pool_repeats``: whether a row must not repeat that row of the pool. A response may repeat its seed's response,
    since it answers another instruction.
    """

    positions: Ints
    prompts: Digests
    texts: Digests
    words: WordRows
    pool: PoolRows
    pool_repeats: np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Candidates:
    """What the comparing steps need of an iteration's candidates."""

    ids: pa.Array
    parents: Ints  # position of the instruction that a response answers
    instructions: Lane
    responses: Lane
    unseen: int  # texts with letters that the rule of tokenisation overlooks


@dataclass(frozen=True)
class Similarity:
    """The highest similarity of each row, NaN where none was recorded, and the id of the row it was met with."""

    value: Floats
    against: list[str | None]

    @classmethod
    def of(cls, candidates: Candidates, lanes: Sequence[Compared]) -> Similarity:
        """What was found under a single threshold."""
        found = cls(np.full(len(candidates.ids), np.nan), [None] * len(candidates.ids))
        for lane, rows, verdicts in lanes:
            positions, similar = lane.positions[rows], verdicts.against[0] != NOBODY
            found.value[positions[similar]] = verdicts.value[0][similar]
            against = verdicts.against[0][similar].tolist()
            for position, number in zip(positions[similar].tolist(), against, strict=True):
                own = number - len(lane.pool)
                found.against[position] = (
                    lane.pool.ids[number] if own < 0 else candidates.ids[int(positions[own])].as_py()
                )
        return found


class Compared(NamedTuple):
    """Verdicts on the rows of a lane that were left, numbered by ``rows`` behind the lane's pool."""

    lane: Lane
    rows: Ints
    verdicts: Verdicts


@dataclass(frozen=True)
class Filtered:
    """What the filters did. ``contaminated``: null where a row was not looked up; ``hits``: CONTAMINATION_HITS."""

    fates: Fates
    similarity: Similarity
    contaminated: pa.Array
    hits: pa.Table
    unseen: int


def filter_candidates(
    source: RowSource,
    rows: int,
    seeds: Mapping[str, SeedTexts],
    filters: FilterSettings,
    rules: Rules,
    evaluation: EvaluationIndex,
    earlier: pa.Table | None = None,
    shelves: Shelves | None = None,
) -> Filtered:
    """All filter steps over the candidates of one iteration.

    ``earlier``: for ``rouge_scope: all`` the index of the iteration before, schema ROUGE_INDEX. ``shelves``: where rows
    lie that all others are compared with; this process if not given.
    """
    fates = Fates.open(rows)
    candidates = read_candidates(source, seeds, filters, fates, rules.objection, earlier)
    drop_orphans(candidates, fates, "text")
    drop_duplicates(candidates, fates)
    hits, contaminated = CONTAMINATION_HITS.empty_table(), pa.nulls(rows, pa.bool_())
    if filters.contamination != "off":
        hits, contaminated = drop_contaminated(source, evaluation, filters, fates)
    thresholds = [filters.rouge_threshold]
    instructions = compare_instructions(candidates, filters, thresholds, fates, shelves)
    drop_similar(candidates, instructions, 0, fates)
    responses = compare_responses(candidates, filters, thresholds, fates)
    drop_similar(candidates, responses, 0, fates)
    similarity = Similarity.of(candidates, [instructions, responses])
    return Filtered(fates, similarity, contaminated, hits, candidates.unseen)


def read_candidates(
    source: RowSource,
    seeds: Mapping[str, SeedTexts],
    filters: FilterSettings,
    fates: Fates,
    objection: Callable[[Generated], str | None],
    earlier: pa.Table | None,
) -> Candidates:
    """One pass over the texts: the ``text`` step, and what the comparing steps need of the rows that it leaves.

    Rows that come with a drop reason stay dropped. ``earlier``: the index of the iteration before, schema ROUGE_INDEX.
    """
    vocabulary, rule = Vocabulary(), tokens_of(filters.rouge_statistic, filters.rouge_words)
    lanes = {"instruction": _Lane(), "response": _Lane()}
    ids: list[pa.Array] = []
    parent_ids: list[pa.Array] = []
    owners: dict[bytes, tuple[str, bool]] = {}  # prompt -> its seed, and whether its responses are flawed ones
    unseen = position = 0
    columns = ["row_id", "parent_ids", "seed_id", "kind", "instruction", "response", "completion_tokens", "drop_reason"]
    for batch in source(columns):
        ids.append(batch["row_id"])
        parent_ids.append(pc.list_element(batch["parent_ids"], 0))
        for row in batch.select(columns[2:]).to_pylist():
            kind, seed = row["kind"], seeds[row["seed_id"]]
            first = kind == "instruction"
            text = row["instruction"] if first else row["response"]
            prompt = seed.instruction if first else row["instruction"]
            if row["drop_reason"] is not None:
                fates.drop("generated", np.array([position]), row["drop_reason"])
            elif (reason := objection(Generated(kind, text, prompt, row["completion_tokens"]))) is not None:
                fates.drop("text", np.array([position]), reason)
            else:
                fates.reach("text", np.array([position]))
                if not first:
                    place = prompt_digest(row["seed_id"], prompt)
                    owners[place] = (row["seed_id"], kind == "flawed_response")
                else:
                    place = ANYWHERE if filters.rouge_scope != "seed" else digest(row["seed_id"])
                words = split_words(text, rule) if first or filters.rouge_responses else []
                unseen += filters.rouge_words == "rouge_score" and unseen_by_rouge_score(text)
                lane = lanes["instruction" if first else "response"]
                lane.append(position, place, text_digest(text, filters.duplicates), vocabulary.numbers(words))
            position += 1
    all_ids = pa.concat_arrays(ids) if ids else pa.array([], type=pa.string())
    parents = pa.concat_arrays(parent_ids) if parent_ids else all_ids
    return Candidates(
        all_ids,
        _positions_of(parents, all_ids),
        _finished(lanes["instruction"], *_instruction_pool(seeds, filters, vocabulary, earlier)),
        _finished(lanes["response"], *_response_pool(seeds, owners, filters, vocabulary, earlier)),
        unseen,
    )


def drop_duplicates(candidates: Candidates, fates: Fates) -> None:
    """Of rows that repeat each other the first stays."""
    for lane in (candidates.instructions, candidates.responses):
        rows = fates.alive[lane.positions]
        pool = np.flatnonzero(lane.pool_repeats)
        places = np.concatenate([lane.pool.prompts[pool], lane.prompts[rows]])
        texts = np.concatenate([lane.pool.texts[pool], lane.texts[rows]])
        repeated = _repeats(np.concatenate([places, texts], axis=1))[len(pool) :]
        fates.reach("duplicate", lane.positions[rows])
        fates.drop("duplicate", lane.positions[rows][repeated], DUPLICATE)
        drop_orphans(candidates, fates, "duplicate")


def drop_contaminated(
    source: RowSource, evaluation: EvaluationIndex, filters: FilterSettings, fates: Fates
) -> tuple[pa.Table, pa.Array]:
    """Look all rows up that are left. Returns the hits (schema CONTAMINATION_HITS) and the column ``contaminated``."""
    hits: list[dict[str, Any]] = []
    contaminated: list[bool | None] = []
    instruction, of_instruction = None, None
    for batch in source(["row_id", "instruction", "response"]):
        alive = fates.alive[len(contaminated) : len(contaminated) + batch.num_rows].tolist()
        for row, looked_up in zip(batch.to_pylist(), alive, strict=True):
            if not looked_up:
                contaminated.append(None)
                continue
            if row["instruction"] != instruction:  # the responses to an instruction come together
                instruction, of_instruction = row["instruction"], evaluation.overlap(row["instruction"])
            found, part = of_instruction, "instruction"
            if found is None and row["response"] is not None:
                found, part = evaluation.shared_run(row["response"]), "response"
            contaminated.append(found is not None)
            if found is not None:
                hits.append(contamination_hit(row["row_id"], "generated", part, found))
    known = np.array([found is not None for found in contaminated], dtype=bool)
    fates.reach("contamination", known)
    if filters.contamination == "drop":
        fates.drop("contamination", np.array([bool(found) for found in contaminated], dtype=bool), CONTAMINATED)
    return table_of(hits, CONTAMINATION_HITS), pa.array(contaminated, type=pa.bool_())


def contamination_hit(row: str, origin: str, part: str, overlap: Overlap) -> dict[str, Any]:
    """A row of CONTAMINATION_HITS."""
    return {
        "row_id": row,
        "origin": origin,
        "part": part,
        "task": overlap.source.task,
        "document": overlap.source.document,
        "field": overlap.source.field,
        "whole": overlap.whole,
        "words": overlap.words,
    }


def compare_instructions(
    candidates: Candidates,
    filters: FilterSettings,
    thresholds: Sequence[float],
    fates: Fates,
    shelves: Shelves | None = None,
) -> Compared:
    """ROUGE-L of the new instructions that are left, under each of the thresholds."""
    lane = candidates.instructions
    if filters.rouge_scope == "seed":
        return _compared_by_prompt(lane, filters, thresholds, fates)
    rows = np.flatnonzero(fates.alive[lane.positions])
    join = SimilarityJoin(_comparison(filters, thresholds), shelves)
    join.add(lane.pool.words, np.arange(len(lane.pool)))
    return Compared(lane, rows, join.keep_first(lane.words, rows, len(lane.pool) + np.arange(len(rows))))


def compare_responses(
    candidates: Candidates, filters: FilterSettings, thresholds: Sequence[float], fates: Fates
) -> Compared:
    """ROUGE-L of the responses that are left, under each of the thresholds.

    Those to an instruction are compared among themselves, so what becomes of other instructions decides nothing.
    """
    lane = candidates.responses
    if filters.rouge_responses:
        return _compared_by_prompt(lane, filters, thresholds, fates)
    rows = np.flatnonzero(fates.alive[lane.positions])
    return Compared(lane, rows, Verdicts.undecided(len(thresholds), len(rows)))


def drop_similar(candidates: Candidates, compared: Compared, under: int, fates: Fates) -> None:
    """ROUGE-L: of rows that resemble each other more than a threshold the first stays.

    ``under``: the position of the threshold.
    """
    positions = compared.lane.positions[compared.rows]
    alive = fates.alive[positions]
    fates.reach("rouge_l", positions[alive])
    fates.drop("rouge_l", positions[alive & ~compared.verdicts.kept[under]], SIMILAR)
    drop_orphans(candidates, fates, "rouge_l")


def drop_orphans(candidates: Candidates, fates: Fates, stage: Stage) -> None:
    """A response goes with its instruction, at the step at which that one was dropped."""
    parents = candidates.parents
    orphans = fates.alive & (parents != _NO_PARENT)
    orphans[orphans] = ~fates.alive[parents[orphans]]
    fates.drop(stage, orphans, PARENT_DROPPED)


def _comparison(filters: FilterSettings, thresholds: Sequence[float]) -> Comparison:
    floor = min(filters.rouge_recorded_above, *thresholds)
    return Comparison(filters.rouge_statistic, tuple(thresholds), floor)


def _compared_by_prompt(lane: Lane, filters: FilterSettings, thresholds: Sequence[float], fates: Fates) -> Compared:
    pool, rows = lane.pool, np.flatnonzero(fates.alive[lane.positions])
    groups = _codes(np.concatenate([pool.prompts, lane.prompts[rows]]))
    comparison = _comparison(filters, thresholds)
    verdicts = keep_first_by_group(comparison, pool.words, groups[: len(pool)], lane.words, rows, groups[len(pool) :])
    return Compared(lane, rows, verdicts)


def _finished(lane: _Lane, pool: PoolRows, pool_repeats: np.ndarray[Any, np.dtype[np.bool_]]) -> Lane:
    return Lane(
        np.frombuffer(lane.positions, dtype=np.int64),  # views, so that nothing is there twice
        np.frombuffer(lane.prompts, dtype=np.uint64).reshape(-1, 2),
        np.frombuffer(lane.texts, dtype=np.uint64).reshape(-1, 2),
        WordRows(np.frombuffer(lane.flat, dtype=np.int32), np.frombuffer(lane.ends, dtype=np.int64)),
        pool,
        pool_repeats,
    )


def _instruction_pool(
    seeds: Mapping[str, SeedTexts], filters: FilterSettings, vocabulary: Vocabulary, earlier: pa.Table | None
) -> tuple[PoolRows, np.ndarray[Any, np.dtype[np.bool_]]]:
    """The instructions of all seeds, then those of earlier iterations."""
    of_seed = filters.rouge_scope == "seed"
    entries = ((s, digest(s) if of_seed else ANYWHERE, texts.instruction) for s, texts in seeds.items())
    pool = PoolRows.of(entries, filters, vocabulary)
    if earlier is not None:
        pool = PoolRows.joined([pool, PoolRows.of_index(earlier, "instruction", filters, vocabulary)])
    return pool, np.ones(len(pool), dtype=bool)


def _response_pool(
    seeds: Mapping[str, SeedTexts],
    owners: Mapping[bytes, tuple[str, bool]],
    filters: FilterSettings,
    vocabulary: Vocabulary,
    earlier: pa.Table | None,
) -> tuple[PoolRows, np.ndarray[Any, np.dtype[np.bool_]]]:
    """For each instruction that was answered the response of its seed, then flawed ones of earlier iterations."""
    asked = list(dict.fromkeys(seed for seed, _ in owners.values()))
    own = PoolRows.of(((seed, ANYWHERE, seeds[seed].response) for seed in asked), filters, vocabulary)
    number = {seed: i for i, seed in enumerate(asked)}
    which = np.array([number[seed] for seed, _ in owners.values()], dtype=np.int64)
    ids = [seed for seed, _ in owners.values()]
    pool = PoolRows(ids, as_digests(list(owners)), own.texts[which], own.words.take(which))
    repeats = np.array([flawed for _, flawed in owners.values()], dtype=bool)
    if earlier is not None:
        known = PoolRows.of_index(earlier, "flawed_response", filters, vocabulary)
        pool = PoolRows.joined([pool, known])
        repeats = np.concatenate([repeats, np.ones(len(known), dtype=bool)])
    return pool, repeats


def _positions_of(wanted: pa.Array, ids: pa.Array) -> Ints:
    found = pc.index_in(wanted, value_set=ids) if len(ids) else pa.array([], type=pa.int32())
    return found.fill_null(_NO_PARENT).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def _codes(digests: Digests) -> Ints:
    """Equal rows get equal numbers."""
    order = np.lexsort(digests.T)
    new = np.ones(len(digests), dtype=bool)
    new[1:] = (digests[order][1:] != digests[order][:-1]).any(axis=1)
    codes = np.empty(len(digests), dtype=np.int64)
    codes[order] = np.cumsum(new) - 1
    return codes


def _repeats(digests: Digests) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows equal an earlier one."""
    codes = _codes(digests)
    first = np.full(codes.max(initial=-1) + 1, len(codes), dtype=np.int64)
    np.minimum.at(first, codes, np.arange(len(codes)))
    repeated: np.ndarray[Any, np.dtype[np.bool_]] = first[codes] < np.arange(len(codes))
    return repeated

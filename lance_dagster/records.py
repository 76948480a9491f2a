"""Row schemas of every table, and the ids of rows.

A row's id is a hash of what it says and where it came from, so the same text from the same parents has the same
id in every run, and two runs can be compared row by row.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa

text, ident = pa.string(), pa.string()

SAMPLING = pa.struct(
    [("temperature", pa.float64()), ("top_p", pa.float64()), ("max_new_tokens", pa.int64()), ("seed", pa.int64())]
)

_WHO = [
    pa.field("iteration", pa.int64(), nullable=False),
    pa.field("method", pa.string(), nullable=False),
    pa.field("model_digest", pa.string(), nullable=False),
    pa.field("prompt_template", pa.string(), nullable=False),
]
_REWARD = [
    pa.field("scores", pa.list_(pa.float64()), nullable=False),  # one per review, null where it did not parse
    pa.field("score", pa.float64()),  # mean of those that parse, 0..10; null if none does
    pa.field("rationales", pa.list_(pa.string()), nullable=False),
    pa.field("review_finish_reasons", pa.list_(pa.string()), nullable=False),
]

SEED_INSTRUCTIONS = pa.schema(
    [
        pa.field("seed_id", ident, nullable=False),
        pa.field("instruction", text, nullable=False),
        pa.field("response", text, nullable=False),
        pa.field("source", text, nullable=False),  # file or data set name
        pa.field("position", pa.int64(), nullable=False),  # 0-based row in the source
    ]
)

SEED_REVIEWS = pa.schema(
    [
        pa.field("seed_id", ident, nullable=False),
        pa.field("instruction", text, nullable=False),
        pa.field("response", text, nullable=False),
        pa.field("rationale", text, nullable=False),
        pa.field("score", pa.float64(), nullable=False),  # 0..10
        pa.field("source", text, nullable=False),
        pa.field("position", pa.int64(), nullable=False),
    ]
)

SEED_QUARANTINE = pa.schema(
    [
        pa.field("source", text, nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", text, nullable=False),
        pa.field("excerpt", text, nullable=False),  # first 200 characters of the row
    ]
)

REVIEWED_SEED = pa.schema(
    [
        pa.field("seed_id", ident, nullable=False),
        pa.field("parent_ids", pa.list_(ident), nullable=False),  # empty for Seed_0, the generated row for grown seeds
        pa.field("instruction", text, nullable=False),
        pa.field("response", text, nullable=False),
        pa.field("origin", pa.string(), nullable=False),  # seed | generated
        *_WHO,
        *_REWARD,
        pa.field("branch", pa.string(), nullable=False),  # instruction | preference | none
    ]
)

CANDIDATES = pa.schema(
    [
        pa.field("row_id", ident, nullable=False),
        pa.field("parent_ids", pa.list_(ident), nullable=False),
        pa.field("seed_id", ident, nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # instruction | response | flawed_response
        pa.field("instruction", text, nullable=False),
        pa.field("response", text),  # null for kind instruction
        *_WHO,
        pa.field("sampling", SAMPLING, nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),  # stop | length | error
        pa.field("error", pa.string()),  # why there is no text, with finish_reason error
        pa.field("attempts", pa.int64()),  # how often a failed request was tried; null for others
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("completion_tokens", pa.int64(), nullable=False),
        pa.field("drop_reason", pa.string()),  # set when the text is unusable as generated
    ]
)

CANDIDATE_LEDGER = pa.schema(
    [
        *CANDIDATES,
        pa.field("original_response", text),  # kind flawed_response: what it is compared with
        pa.field("original_score", pa.float64()),
        pa.field("contaminated", pa.bool_()),  # overlaps with an evaluation task; null where it was not looked up
        pa.field("rouge_l", pa.float64()),  # highest similarity with a kept row before it, if above what is recorded
        pa.field("rouge_l_against", ident),  # that row, or the seed
        *_REWARD,
        pa.field("stage", pa.string(), nullable=False),  # the last step that the row reached
        pa.field("kept", pa.bool_(), nullable=False),
    ]
)

CONTAMINATION_HITS = pa.schema(
    [
        pa.field("row_id", ident, nullable=False),  # of the ledger, or the seed
        pa.field("origin", pa.string(), nullable=False),  # generated | seed
        pa.field("part", pa.string(), nullable=False),  # instruction | response: what overlaps
        pa.field("task", pa.string(), nullable=False),
        pa.field("document", pa.int64(), nullable=False),  # position in the task
        pa.field("field", pa.string(), nullable=False),
        pa.field("whole", pa.bool_(), nullable=False),  # the text is the question, else they share a run of words
        pa.field("words", text, nullable=False),  # what both have, normalised
    ]
)

ROUGE_INDEX = pa.schema(
    [
        pa.field("row_id", ident, nullable=False),
        pa.field("iteration", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # instruction | flawed_response
        pa.field("prompt", ident, nullable=False),  # hash of what it is compared within
        pa.field("text", ident, nullable=False),  # hash of the text, as repetitions are told
        pa.field("words", pa.list_(pa.string()), nullable=False),
        pa.field("rule", pa.string(), nullable=False),  # how words and repetitions were told
    ]
)

SFT_SET = pa.schema(
    [
        pa.field("row_id", ident, nullable=False),
        pa.field("parent_ids", pa.list_(ident), nullable=False),
        pa.field("seed_id", ident, nullable=False),
        pa.field("iteration", pa.int64(), nullable=False),  # that wrote the row; -1 for rows of the seed
        pa.field("origin", pa.string(), nullable=False),  # generated | seed | review
        pa.field("system", text),
        pa.field("prompt", text, nullable=False),
        pa.field("response", text, nullable=False),
        pa.field("score", pa.float64()),
        pa.field("model_digest", pa.string()),
    ]
)

PREFERENCE_SET = pa.schema(
    [
        pa.field("row_id", ident, nullable=False),
        pa.field("parent_ids", pa.list_(ident), nullable=False),  # chosen, rejected
        pa.field("seed_id", ident, nullable=False),
        pa.field("iteration", pa.int64(), nullable=False),
        pa.field("system", text),
        pa.field("prompt", text, nullable=False),
        pa.field("chosen", text, nullable=False),
        pa.field("rejected", text, nullable=False),
        pa.field("chosen_score", pa.float64()),
        pa.field("rejected_score", pa.float64()),
        pa.field("model_digest", pa.string(), nullable=False),
    ]
)

EVAL_SCORES = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),  # base | initial | initial_again | sft | dpo
        pa.field("iteration", pa.int64(), nullable=False),  # -1 for base and initial
        pa.field("model_digest", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("stderr", pa.float64()),
        pa.field("documents", pa.int64(), nullable=False),
    ]
)

EVAL_ITEMS = pa.schema(
    [
        pa.field("model_digest", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),  # hash of the document, the same for every model
        pa.field("part", pa.string()),  # value of evaluation.breakdown_field
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)

DRIFT = pa.schema(
    [
        pa.field("iteration", pa.int64(), nullable=False),
        pa.field("model_digest", pa.string(), nullable=False),
        pa.field("against", pa.string(), nullable=False),  # base | initial | policy_000 …
        pa.field("against_digest", pa.string(), nullable=False),
        pa.field("kl", pa.float64(), nullable=False),  # nats per response token, KL(against || model)
        pa.field("weight_distance", pa.float64(), nullable=False),  # |w - w'| / |w'|, L2 over all weights
        pa.field("response_nll", pa.float64(), nullable=False),  # of the model on the seed responses, nats per token
        pa.field("rows", pa.int64(), nullable=False),
    ]
)


def row_id(*parts: Any) -> str:
    """Sixteen hex characters over the parts, which must be JSON values."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True, sort_keys=True).encode()).hexdigest()[:16]


def table_of(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """An Arrow table of exactly ``schema``; a missing or an unknown column is a KeyError that names the row.

    A null where none is allowed and a fraction among whole numbers are a ValueError, a value of
    another type is pyarrow's own ArrowInvalid or ArrowTypeError.
    """
    names = set(schema.names)
    whole = [field.name for field in schema if pa.types.is_integer(field.type)]
    for position, row in enumerate(rows):
        if row.keys() != names:
            missing, unknown = sorted(names - row.keys()), sorted(row.keys() - names)
            raise KeyError(f"row {position} does not fit its schema: missing {missing}, unknown {unknown}")
        for name in whole:  # pyarrow would cut the fraction off
            if isinstance(row[name], float) and not row[name].is_integer():
                raise ValueError(f"row {position}: {name} must be a whole number, got {row[name]}")
    table = pa.Table.from_pylist(rows, schema=schema)
    return checked(table, schema)


def checked(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` if it has exactly this schema and no null where none is allowed, else ValueError."""
    if not table.schema.equals(schema):
        raise ValueError(f"table does not have the expected schema.\nexpected:\n{schema}\ngot:\n{table.schema}")
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise ValueError(f"column {field.name!r} must not be null, {table[field.name].null_count} rows are")
    return table

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import lance_dagster
from lance_dagster import records
from lance_dagster.records import SEED_REVIEWS, checked, row_id, table_of
from lance_dagster.storage.tables import table_digest

PARTS: list[Any] = ["naïve – 東京", 3, 0.7, None, True, {"top_p": 0.9, "stop": ["a"]}]
REVIEW: dict[str, Any] = {
    "seed_id": "0123",
    "instruction": "Name a fruit.",
    "response": "A cherry.",
    "rationale": "It is a fruit.",
    "score": 9.0,
    "source": "reviews.jsonl",
    "position": 0,
}
SCHEMAS = {name: schema for name, schema in vars(records).items() if isinstance(schema, pa.Schema)}


def test_a_row_id_is_sixteen_hex_characters() -> None:
    assert len(row_id(*PARTS)) == 16
    assert set(row_id(*PARTS)) <= set("0123456789abcdef")


def test_a_row_id_is_the_same_in_every_process_and_release() -> None:
    program = f"from lance_dagster.records import row_id; print(ascii(row_id(*{PARTS!r})))"
    root = Path(lance_dagster.__file__).parents[1]
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip("'\n")
        for seed in ("1", "2")
    }
    # Ids are in users' tables: if this changes, lineage between releases is lost.
    assert found == {row_id(*PARTS)} == {"e0ed7dca65ea3ba3"}


def test_a_row_id_does_not_depend_on_the_order_of_keys() -> None:
    assert row_id({"a": 1, "b": {"c": 2, "d": 3}}) == row_id({"b": {"d": 3, "c": 2}, "a": 1})


def test_other_parts_have_other_row_ids() -> None:
    parts: list[tuple[Any, ...]] = [
        (),
        ("",),
        (None,),
        ("None",),
        ("a", "b"),
        ("b", "a"),
        ("ab",),
        ("a", "b", ""),
        (["a", "b"],),
        ('a", "b',),
        (1,),
        ("1",),
        (True,),
        ({"a": 1},),
        ("é",),
        ("e\u0301",),
    ]
    assert len({row_id(*each) for each in parts}) == len(parts)


def test_a_part_that_is_no_json_value_is_refused() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        row_id({"a", "b"})


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_table_without_rows_has_its_whole_schema(name: str) -> None:
    assert table_of([], SCHEMAS[name]).schema.equals(SCHEMAS[name])


def test_rows_become_a_table_of_exactly_the_schema_whatever_the_order_of_their_keys() -> None:
    turned = dict(reversed(REVIEW.items()))
    table = table_of([REVIEW, turned], SEED_REVIEWS)
    assert table.schema.equals(SEED_REVIEWS)
    assert table.to_pylist() == [REVIEW, REVIEW]
    assert table_digest(table_of([turned], SEED_REVIEWS)) == table_digest(table_of([REVIEW], SEED_REVIEWS))


@pytest.mark.parametrize("column", REVIEW)
def test_a_missing_column_is_refused_by_name_and_row(column: str) -> None:
    short = {name: value for name, value in REVIEW.items() if name != column}
    with pytest.raises(KeyError, match=rf"row 1 does not fit its schema: missing \['{column}'\], unknown \[\]"):
        table_of([REVIEW, short], SEED_REVIEWS)


def test_an_unknown_column_is_refused_by_name_and_row() -> None:
    with pytest.raises(KeyError, match=r"row 2 does not fit its schema: missing \[\], unknown \['weight'\]"):
        table_of([REVIEW, REVIEW, {**REVIEW, "weight": 1.0}], SEED_REVIEWS)


@pytest.mark.parametrize("column", REVIEW)
def test_a_null_in_a_column_that_has_none_is_refused_by_name(column: str) -> None:
    with pytest.raises(ValueError, match=f"column '{column}' must not be null, 2 rows are"):
        table_of([{**REVIEW, column: None}, REVIEW, {**REVIEW, column: None}], SEED_REVIEWS)


def test_a_null_is_kept_where_the_schema_allows_one() -> None:
    schema = pa.schema([pa.field("row_id", pa.string(), nullable=False), pa.field("score", pa.float64())])
    assert table_of([{"row_id": "a", "score": None}], schema).to_pylist() == [{"row_id": "a", "score": None}]


@pytest.mark.parametrize(
    ("column", "value"),
    [("score", "9"), ("position", "0"), ("position", True), ("instruction", 5), ("instruction", ["Name a fruit."])],
)
def test_a_value_of_another_type_is_refused_rather_than_cast(column: str, value: object) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        table_of([{**REVIEW, column: value}], SEED_REVIEWS)


@pytest.mark.parametrize("position", [1.5, float("nan")])
def test_a_fraction_is_refused_rather_than_cut_to_a_whole_number(position: float) -> None:
    with pytest.raises(ValueError, match="row 1: position must be a whole number, got"):
        table_of([REVIEW, {**REVIEW, "position": position}], SEED_REVIEWS)


def test_a_table_of_another_schema_is_refused_with_both_schemas() -> None:
    table = table_of([REVIEW], SEED_REVIEWS)
    assert checked(table, SEED_REVIEWS) is table
    for other in (table.drop_columns(["score"]), table.select(table.column_names[::-1])):
        with pytest.raises(ValueError, match=r"(?s)expected:.*score: double not null.*got:"):
            checked(other, SEED_REVIEWS)

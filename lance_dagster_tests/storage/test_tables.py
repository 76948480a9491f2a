from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from upath import UPath

from lance_dagster.errors import ArtifactError
from lance_dagster.storage.tables import read_table, table_digest, write_table
from lance_dagster_tests.storage.killing import kill

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("text", pa.large_string()),
        ("count", pa.int64()),
        ("score", pa.float64()),
        ("kept", pa.bool_()),
        ("scores", pa.list_(pa.float64())),
        ("rationales", pa.list_(pa.string())),
        ("sampling", pa.struct([("top_p", pa.float64()), ("seed", pa.int64()), ("stops", pa.list_(pa.string()))])),
        ("turns", pa.list_(pa.struct([("role", pa.string()), ("tokens", pa.int32())]))),
        ("nothing", pa.null()),
    ]
)
# One row per awkward case: plain, all null, empty, unicode, nulls within, and a plain one again.
ROWS: list[tuple[Any, ...]] = [
    ("r1", "What is 2 + 3?", 5, 7.5, True, [7.0, 8.0], ["fine", "good"], (0.9, 1, ["a"]), [("user", 3)], None),
    (None, None, None, None, None, None, None, None, None, None),
    ("", "", 0, 0.0, False, [], [], (None, None, []), [], None),
    ("r4", "naïve – 東京 👩‍🚀 \x00 \n", -(2**63), float("nan"), True, [float("inf")], ["é"], (1.0, -1, None), [], None),
    ("r5", "a", 2**63 - 1, -1.5, False, [None, 3.0], ["", None], (0.5, None, [None, ""]), [(None, None), None], None),
    ("r6", "What is 2 + 3?", 5, 7.5, True, [7.0], ["fine"], (0.9, 1, ["a", "b"]), [("user", 3), ("model", 4)], None),
]


def table(rows: list[tuple[Any, ...]] = ROWS) -> pa.Table:
    def row(values: tuple[Any, ...]) -> dict[str, Any]:
        named = dict(zip(SCHEMA.names, values, strict=True))
        if named["sampling"] is not None:
            named["sampling"] = dict(zip(("top_p", "seed", "stops"), named["sampling"], strict=True))
        if named["turns"] is not None:
            turns = named["turns"]
            named["turns"] = [turn and dict(zip(("role", "tokens"), turn, strict=True)) for turn in turns]
        return named

    return pa.Table.from_pylist([row(values) for values in rows], schema=SCHEMA)


def through_parquet(content: pa.Table, **options: Any) -> pa.Table:
    sink = io.BytesIO()
    pq.write_table(content, sink, **options)
    return pq.read_table(io.BytesIO(sink.getvalue()))


def through_ipc(content: pa.Table) -> pa.Table:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=2)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


# Same content


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda t: pa.concat_tables([t.slice(0, 1), t.slice(1, 3), t.slice(4)]), id="chunks"),
        pytest.param(lambda t: pa.concat_tables([t.slice(0, 0), t, t.slice(0, 0)]), id="empty_chunks"),
        pytest.param(lambda t: pa.concat_tables([t.slice(3), t, t]).combine_chunks().slice(3, 6), id="slice"),
        pytest.param(lambda t: t.take(pa.array([1, 0, 3, 2, 5, 4])).take(pa.array([1, 0, 3, 2, 5, 4])), id="take"),
        pytest.param(through_ipc, id="ipc"),
        pytest.param(through_parquet, id="parquet"),
        pytest.param(lambda t: through_parquet(t, row_group_size=2), id="row_groups"),
        pytest.param(lambda t: through_parquet(t, version="1.0", use_dictionary=False), id="parquet_1"),
        pytest.param(lambda t: through_parquet(t, data_page_version="2.0", compression="gzip"), id="pages_2"),
        pytest.param(lambda t: through_parquet(t, use_compliant_nested_type=False), id="item_names"),
        pytest.param(lambda t: t.replace_schema_metadata({"written": "today"}), id="metadata"),
    ],
)
def test_the_same_content_has_the_same_digest(other: Callable[[pa.Table], pa.Table]) -> None:
    assert table_digest(other(table())) == table_digest(table())


def test_a_table_keeps_its_digest_in_the_store(store: UPath) -> None:
    write_table(store / "sft_set" / "000.parquet", table())
    assert table_digest(read_table(store / "sft_set" / "000.parquet")) == table_digest(table())


def test_random_tables_keep_their_digest_in_random_chunks_and_slices() -> None:
    rng = random.Random(5)
    for _ in range(60):
        rows = rng.choices(ROWS, k=rng.randint(1, 30))
        before, after = rng.choices(ROWS, k=rng.randint(0, 9)), rng.choices(ROWS, k=rng.randint(0, 9))
        cuts = sorted(rng.randint(0, len(rows)) for _ in range(rng.randint(0, 4)))
        middle = table(before + rows + after).slice(len(before), len(rows))
        chunks = [middle.slice(low, high - low) for low, high in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
        assert table_digest(pa.concat_tables(chunks)) == table_digest(table(rows))


def test_a_bitmap_that_marks_no_null_does_not_change_the_digest() -> None:
    plain = pa.array([1, 2, 3])
    marked = pa.Array.from_buffers(pa.int64(), 3, [pa.py_buffer(b"\xff"), plain.buffers()[1]])
    assert plain.buffers()[0] is None
    assert table_digest(pa.table({"a": marked})) == table_digest(pa.table({"a": plain}))


SECOND_IS_NULL = pa.py_buffer(bytes([0b101]))
NUMBERS, TEXTS = pa.array([1, 99, 3]), pa.array(["a", "hidden", "c"])
LISTS, STRUCTS = pa.array([["a"], ["hidden", "too"], ["c"]]), pa.array([{"x": 1}, {"x": 99}, {"x": 3}])


@pytest.mark.parametrize(
    ("hiding", "clean"),
    [
        (pa.Array.from_buffers(NUMBERS.type, 3, [SECOND_IS_NULL, *NUMBERS.buffers()[1:]]), [1, None, 3]),
        (pa.Array.from_buffers(TEXTS.type, 3, [SECOND_IS_NULL, *TEXTS.buffers()[1:]]), ["a", None, "c"]),
        (
            pa.Array.from_buffers(LISTS.type, 3, [SECOND_IS_NULL, LISTS.buffers()[1]], children=[LISTS.values]),
            [["a"], None, ["c"]],
        ),
        (
            pa.Array.from_buffers(STRUCTS.type, 3, [SECOND_IS_NULL], children=[STRUCTS.field(0)]),
            [{"x": 1}, None, {"x": 3}],
        ),
    ],
    ids=["number", "text", "list", "struct"],
)
def test_what_lies_under_a_null_does_not_change_the_digest(hiding: pa.Array, clean: list[Any]) -> None:
    assert hiding.to_pylist() == clean
    assert table_digest(pa.table({"a": hiding})) == table_digest(pa.table({"a": pa.array(clean, hiding.type)}))


def test_a_column_longer_than_one_block_has_the_same_digest_in_any_chunks() -> None:
    values = np.arange(40_000)
    whole = pa.table({"n": values, "t": pa.array(values.astype(str))})
    parts = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 20_000), whole.slice(20_007)])
    assert table_digest(parts) == table_digest(whole)
    last = whole.slice(0, 39_999)
    changed = pa.concat_tables([last, pa.table({"n": [0], "t": ["39999"]}, schema=whole.schema)])
    assert table_digest(changed) != table_digest(whole)


def test_the_digest_is_the_same_in_every_release() -> None:
    # Data versions of users' artifacts are made of it: if this changes, say so in CHANGELOG.md.
    assert table_digest(table()) == "d8e8714f148cf5f7"


# Other content


def test_any_changed_value_changes_the_digest() -> None:
    digests = {repr(ROWS): table_digest(table())}
    for row in range(len(ROWS)):
        for column in range(SCHEMA.get_field_index("nothing")):
            for other in (ROWS[0][column], ROWS[1][column], ROWS[2][column], ROWS[4][column]):
                values = (*ROWS[row][:column], other, *ROWS[row][column + 1 :])
                changed = [*ROWS[:row], values, *ROWS[row + 1 :]]
                digests[repr(changed)] = table_digest(table(changed))
    assert len(digests) > 150
    assert len(set(digests.values())) == len(digests)


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (pa.string(), [None], [""]),
        (pa.string(), ["ab", "c"], ["a", "bc"]),
        (pa.string(), ["a", None], [None, "a"]),
        (pa.binary(), [None], [b""]),
        (pa.int64(), [None], [0]),
        (pa.float64(), [None], [float("nan")]),
        (pa.bool_(), [None], [False]),
        (pa.list_(pa.string()), [None], [[]]),
        (pa.list_(pa.string()), [[]], [[None]]),
        (pa.list_(pa.string()), [[None]], [[""]]),
        (pa.list_(pa.string()), [["a"], ["b"]], [["a", "b"], []]),
        (pa.list_(pa.string()), [["ab"]], [["a", "b"]]),
        (pa.list_(pa.list_(pa.int64())), [[[1], [2]]], [[[1, 2], []]]),
        (pa.struct([("x", pa.int64())]), [None], [{"x": None}]),
        (pa.struct([("x", pa.int64())]), [{"x": None}], [{"x": 0}]),
        (pa.struct([("x", pa.int64()), ("y", pa.int64())]), [{"x": 1, "y": 2}], [{"x": 2, "y": 1}]),
    ],
)
def test_values_that_look_alike_have_other_digests(kind: pa.DataType, one: list[Any], other: list[Any]) -> None:
    digests = [table_digest(pa.table({"a": pa.array(values, kind)})) for values in (one, other)]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda t: t.select([1, 0, *range(2, 10)]), id="column_order"),
        pytest.param(lambda t: t.rename_columns(["id", *t.column_names[1:]]), id="column_name"),
        pytest.param(lambda t: t.set_column(1, "text", t["text"].cast(pa.string())), id="column_type"),
        pytest.param(lambda t: t.drop_columns(["nothing"]), id="column_dropped"),
        pytest.param(lambda t: t.append_column("none", pa.nulls(6)), id="column_added"),
        pytest.param(lambda t: t.take(pa.array([1, 0, 2, 3, 4, 5])), id="row_order"),
        pytest.param(lambda t: t.slice(0, 5), id="last_row_dropped"),
        pytest.param(lambda t: pa.concat_tables([t, t.slice(5)]), id="last_row_repeated"),
    ],
)
def test_another_shape_has_another_digest(other: Callable[[pa.Table], pa.Table]) -> None:
    assert table_digest(other(table())) != table_digest(table())


def test_a_member_of_a_struct_counts_by_its_name() -> None:
    tables = [pa.table({"a": pa.array([{name: 1}])}) for name in ("seed", "sample")]
    assert table_digest(tables[0]) != table_digest(tables[1])


def test_empty_tables_are_told_apart_by_their_columns() -> None:
    schemas = [
        SCHEMA,
        pa.schema([]),
        pa.schema([("a", pa.int64()), ("b", pa.int64())]),
        pa.schema([("b", pa.int64()), ("a", pa.int64())]),
        pa.schema([("a", pa.int64()), ("b", pa.string())]),
        pa.schema([("a:int64:0;b", pa.int64())]),  # a name that looks like two columns
        pa.schema([("a", pa.struct([("x", pa.int64()), ("y", pa.int64())]))]),
        pa.schema([("a", pa.struct([("x: int64, y", pa.int64())]))]),
    ]
    digests = [table_digest(schema.empty_table()) for schema in schemas]
    assert len(set(digests)) == len(schemas)
    assert table_digest(table().slice(2, 0)) == digests[0]


def test_a_type_without_a_digest_is_refused_rather_than_left_out() -> None:
    with pytest.raises(TypeError, match=r"no digest for Arrow type date32.*storage/tables\.py"):
        table_digest(pa.table({"a": pa.array([1], pa.date32())}))


# Reading


def test_a_table_with_the_promised_digest_is_read(store: UPath) -> None:
    path = store / "sft_set.parquet"
    write_table(path, table())
    assert read_table(path, table_digest(table())).to_pylist()[4] == table().to_pylist()[4]


def test_a_table_with_another_digest_than_promised_is_refused_with_the_next_step(store: UPath) -> None:
    path = store / "sft_set.parquet"
    write_table(path, table())
    promised = table_digest(table())
    write_table(path, table().slice(1))
    with pytest.raises(ArtifactError, match="Re-materialise the iterations that follow it") as caught:
        read_table(path, promised)
    assert str(path) in str(caught.value)
    assert promised in str(caught.value)


def test_a_missing_table_is_named_with_the_next_step(store: UPath) -> None:
    path = store / "sft_set" / "003.parquet"
    with pytest.raises(ArtifactError, match="materialise the asset that writes it first") as caught:
        read_table(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_table_is_refused_with_the_next_step(store: UPath, kept: float) -> None:
    path = store / "sft_set.parquet"
    write_table(path, table())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ArtifactError, match=r"not a readable Parquet file .*; re-materialise it") as caught:
        read_table(path)
    assert str(path) in str(caught.value)


def test_a_changed_byte_in_the_rows_is_never_read_as_another_value(tmp_path: Path) -> None:
    path = UPath(tmp_path / "rows.parquet")
    rows = pa.table({"t": [f"row {i} é" for i in range(40)], "x": [[i / 7, None] for i in range(40)]})
    write_table(path, rows)
    content = path.read_bytes()
    group = pq.read_metadata(path).row_group(0)
    end = 4 + sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    rng, refused = random.Random(0), 0
    for place in range(4, end):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            assert read_table(path).to_pylist() == rows.to_pylist(), place
        except ArtifactError:
            refused += 1
    assert refused > (end - 4) / 2


# Writing

KILLED_IN_WRITE_TABLE = """
import sys
import pyarrow as pa
from upath import UPath
from lance_dagster.storage import files, tables
files.os.fsync = hang
tables.write_table(UPath(sys.argv[1]), pa.table({"a": [4, 5, 6]}))
"""
KILLED_BETWEEN_ROW_GROUPS = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
from upath import UPath
from lance_dagster.storage.files import replacing
with replacing(UPath(sys.argv[1])) as sink, pq.ParquetWriter(sink, pa.schema({"a": pa.int64()})) as writer:
    writer.write_table(pa.table({"a": [4, 5]}))
    sink.flush()
    hang()
"""


@pytest.mark.parametrize("program", [KILLED_IN_WRITE_TABLE, KILLED_BETWEEN_ROW_GROUPS], ids=["whole", "half"])
def test_a_table_whose_writer_is_killed_keeps_its_old_rows_and_no_reader_finds_others(
    tmp_path: Path, program: str
) -> None:
    write_table(UPath(tmp_path / "000.parquet"), pa.table({"a": [1, 2, 3]}))
    kill(program, tmp_path / "000.parquet")
    kill(program, tmp_path / "001.parquet")
    assert read_table(UPath(tmp_path / "000.parquet"))["a"].to_pylist() == [1, 2, 3]
    with pytest.raises(ArtifactError, match="there is no table"):
        read_table(UPath(tmp_path / "001.parquet"))
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["000.parquet"]
    assert ds.dataset(tmp_path).to_table()["a"].to_pylist() == [1, 2, 3]  # reads every file that has no dot in front


def test_a_table_that_cannot_be_written_leaves_the_old_one(store: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store / "000.parquet"
    write_table(path, table())

    def full(_: object, sink: io.BytesIO, **__: object) -> None:
        sink.write(b"PAR1")
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(path, table().slice(1))
    assert table_digest(read_table(path)) == table_digest(table())
    assert [entry.name for entry in store.iterdir()] == ["000.parquet"]

"""Parquet tables on any fsspec path: written whole or not at all, named by the digest of their content."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from lance_dagster.errors import ArtifactError
from lance_dagster.storage.files import replacing

_DIGEST_ROWS = 1 << 14  # hashed at a time: bounds memory, and 32-bit text offsets do not overflow


def write_table(path: UPath, table: pa.Table) -> None:
    """Write ``table`` to ``path``, whole or not at all."""
    with replacing(path) as sink:
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)


def read_table(path: UPath, digest: str | None = None) -> pa.Table:
    """Read a table; with ``digest``, refuse content other than the one that was promised.

    Raises ArtifactError for a missing or a damaged file, and for another digest.
    """
    if not path.exists():
        raise ArtifactError(f"there is no table at {path}; materialise the asset that writes it first")
    try:
        with path.open("rb") as source:
            table = pq.read_table(source, page_checksum_verification=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ArtifactError(f"{path} is not a readable Parquet file ({error}); re-materialise it") from error
    if digest is not None and table_digest(table) != digest:
        raise ArtifactError(
            f"{path} holds other content (digest {table_digest(table)}) than expected ({digest}): it was "
            "re-materialised since. Re-materialise the iterations that follow it, starting with policy_model."
        )
    return table


def table_digest(table: pa.Table) -> str:
    """Hash of names, types and values, whatever the chunks, null buffers and Parquet version (16 hex characters).

    Whether a column may be null and what Parquet calls the items of a list are no content.
    """
    header = [table.num_rows, [[field.name, _type_name(field.type)] for field in table.schema]]
    hasher = hashlib.sha256(json.dumps(header).encode())
    for column in table.columns:
        for start in range(0, table.num_rows, _DIGEST_ROWS):
            _feed(hasher, pa.concat_arrays(column.slice(start, _DIGEST_ROWS).chunks))
    return hasher.hexdigest()[:16]


def _type_name(kind: pa.DataType) -> Any:
    """A type as JSON. Lists go by the type of their items alone: Parquet renames 'item' to 'element'."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return ["large_list" if pa.types.is_large_list(kind) else "list", _type_name(kind.value_type)]
    if pa.types.is_struct(kind):
        return ["struct", [[field.name, _type_name(field.type)] for field in kind]]
    return str(kind)


def _feed(hasher: Any, array: pa.Array) -> None:
    hasher.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        filled = array.cast(pa.large_binary()).fill_null(b"")
        hasher.update(pc.binary_length(filled).to_numpy(zero_copy_only=False).tobytes())
        if len(filled):
            _, offsets, data = filled.buffers()
            bounds = np.frombuffer(offsets, dtype=np.int64)[filled.offset : filled.offset + len(filled) + 1]
            hasher.update(memoryview(data or b"")[bounds[0] : bounds[-1]])
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.list_value_length(array).fill_null(0)
        hasher.update(lengths.to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
        _feed(hasher, array.flatten())
    elif pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            _feed(hasher, pc.struct_field(array, index))
    elif pa.types.is_boolean(kind):
        hasher.update(np.packbits(array.fill_null(False).to_numpy(zero_copy_only=False)).tobytes())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        hasher.update(array.fill_null(0).to_numpy(zero_copy_only=False).tobytes())
    elif pa.types.is_null(kind):
        return
    else:
        raise TypeError(f"no digest for Arrow type {kind}; add it to storage/tables.py")

"""The IO manager of table assets: Parquet on any fsspec path, atomic, described in the metadata."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pyarrow as pa
from upath import UPath

from lance_dagster.storage.tables import read_table, table_digest, write_table

_PREVIEW_ROWS, _PREVIEW_CHARACTERS = 8, 120


class ParquetIOManager(dg.UPathIOManager):
    """Stores one Arrow table per asset and partition at the paths of ExperimentStore."""

    extension = ".parquet"

    def dump_to_path(self, context: dg.OutputContext, obj: pa.Table, path: UPath) -> None:
        write_table(path, obj)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> pa.Table:
        return read_table(path)

    def get_metadata(self, context: dg.OutputContext, obj: pa.Table) -> dict[str, Any]:
        rows = "dagster/partition_row_count" if context.has_asset_partitions else "dagster/row_count"
        return {
            rows: obj.num_rows,
            "rows": obj.num_rows,
            "digest": table_digest(obj),
            "dagster/column_schema": column_schema(obj.schema),
            "dagster/uri": str(self._location(context)),
            "preview": preview(obj),
        }

    def _location(self, context: dg.OutputContext) -> UPath:
        """The file that this output is written to."""
        if not context.has_asset_partitions:
            return self._get_path(context)
        (path,) = self._get_paths_for_partitions(context).values()
        return path


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """The Arrow schema as Dagster shows it."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(field.name, str(field.type), constraints=dg.TableColumnConstraints(nullable=field.nullable))
            for field in schema
        ]
    )


def preview(table: pa.Table, rows: int = _PREVIEW_ROWS) -> dg.MarkdownMetadataValue:
    """The first rows as a Markdown table, long cells cut."""
    if not table.num_rows:
        return dg.MetadataValue.md("(no rows)")
    lines = [f"| {' | '.join(table.column_names)} |", "|" + " --- |" * table.num_columns]
    for row in table.slice(0, rows).to_pylist():
        lines.append("| " + " | ".join(_cell(value) for value in row.values()) + " |")
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    text = text if len(text) <= _PREVIEW_CHARACTERS else text[: _PREVIEW_CHARACTERS - 1] + "…"
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ⏎ ").replace("<", "&lt;")

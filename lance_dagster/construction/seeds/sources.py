"""The rows of a seed source, one by one and as they stand there.

A source is a path (absolute, or relative to a root folder) of a JSONL, JSON or Parquet file, of a folder of such
files, or of a folder written by ``datasets.Dataset.save_to_disk``, or ``hf://owner/name[@split]`` for a data set of the
Hugging Face hub.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lance_dagster.construction.seeds.quarantine import NOT_JSON, NOT_UTF8, Fault
from lance_dagster.errors import SeedError

ACCEPTED = (
    "a .jsonl, .json or .parquet file, a folder of such files, a folder written by save_to_disk, or "
    "hf://owner/name[@split]"
)

_HUB_NAME = re.compile(r"hf://(?P<name>[^/@\s]+/[^/@\s]+)(@(?P<split>\S+))?")
_ENDINGS = (".jsonl", ".json", ".parquet")
_BATCH_ROWS = 1000


class SourceRow(NamedTuple):
    """One row of a source. Where ``fault`` is set it could not be parsed, and ``value`` is its bytes."""

    position: int  # 0-based; of a JSONL file the index of the line, blank lines counted
    value: object
    fault: Fault | None = None


def read_rows(source: str, root: Path) -> Iterator[SourceRow]:
    """The rows of ``source``; relative paths are taken from ``root``.

    A JSONL line (or Arrow text) that cannot be decoded comes with its fault and the reading goes on.
    Raises SeedError where the source as a whole is missing, unreadable or of no accepted kind.
    """
    try:
        yield from _rows(source, root)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SeedError(f"seed source {source!r} cannot be read: {error}. Mend it or name another file.") from error


def _rows(source: str, root: Path) -> Iterator[SourceRow]:
    if "://" in source:
        return _hub_rows(source)
    path = root / source
    if path.is_dir():
        saved = any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))
        return _saved_rows(source, path) if saved else _folder_rows(source, path)
    if not path.is_file():
        raise SeedError(f"seed source {source!r}: there is no file {path}. Give {ACCEPTED}; paths start at {root}.")
    return _file_rows(source, path)


def _folder_rows(source: str, folder: Path) -> Iterator[SourceRow]:
    """The files of a folder in the order of their names; hidden and other files are no seed. Positions go on."""
    files = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS and not path.name.startswith(".")
    )
    if not files:
        raise SeedError(f"seed source {source!r}: the folder {folder} holds no seed file. Give {ACCEPTED}.")
    start = 0
    for path in files:
        after = start
        for row in _file_rows(f"{source}/{path.name}", path):
            yield row._replace(position=start + row.position)
            after = start + row.position + 1
        start = after


def _file_rows(source: str, path: Path) -> Iterator[SourceRow]:
    match path.suffix.lower():
        case ".jsonl":
            return _jsonl_rows(path)
        case ".json":
            return _json_rows(source, path)
        case ".parquet":
            return _arrow_rows(pq.ParquetFile(path).iter_batches(_BATCH_ROWS))
        case ending:
            raise SeedError(f"seed source {source!r} ends in {ending!r}, which is no known kind. Give {ACCEPTED}.")


def _jsonl_rows(path: Path) -> Iterator[SourceRow]:
    # As bytes, so that a line that is not UTF-8 costs that line only.
    with path.open("rb") as lines:
        for position, line in enumerate(lines):
            content = line.removeprefix(codecs.BOM_UTF8).strip() if position == 0 else line.strip()
            if content:
                yield _jsonl_row(position, content)


def _jsonl_row(position: int, content: bytes) -> SourceRow:
    try:
        return SourceRow(position, json.loads(content.decode("utf-8")))
    except UnicodeDecodeError as error:
        return SourceRow(position, content, _not_utf8(error))
    except (ValueError, RecursionError) as error:
        return SourceRow(position, content, Fault(NOT_JSON, str(error)))


def _json_rows(source: str, path: Path) -> Iterator[SourceRow]:
    try:
        content = json.loads(path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SeedError(
            f"seed source {source!r} is not valid JSON: {error}. Mend it, or write one object per line to a .jsonl "
            "file, where a broken line is set aside alone."
        ) from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise SeedError(f'seed source {source!r} is neither a list of objects nor {{"data": [...]}}. Write it as one.')
    for position, value in enumerate(rows):
        yield SourceRow(position, value)


def _arrow_rows(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[SourceRow]:
    start = 0
    for batch in batches:
        try:
            values = batch.to_pylist()
        except UnicodeDecodeError:  # one by one, so that only the rows with such a text are lost
            for offset in range(batch.num_rows):
                yield _arrow_row(start + offset, batch.slice(offset, 1))
        else:
            for offset, value in enumerate(values):
                yield SourceRow(start + offset, value)
        start += batch.num_rows


def _arrow_row(position: int, batch: pa.RecordBatch | pa.Table) -> SourceRow:
    try:
        return SourceRow(position, batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        return SourceRow(position, error.object, _not_utf8(error))


def _not_utf8(error: UnicodeDecodeError) -> Fault:
    return Fault(NOT_UTF8, f"byte 0x{error.object[error.start]:02x} at {error.start}: {error.reason}")


def _saved_rows(source: str, path: Path) -> Iterator[SourceRow]:
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(info.parent.name for info in path.glob("*/dataset_info.json")))
        raise SeedError(
            f"seed source {source!r} is a folder of splits. Name one of them, '{source}/<split>': {splits}."
        )
    if not ((path / "dataset_info.json").is_file() and (path / "state.json").is_file()):
        raise SeedError(f"seed source {source!r}: the folder {path} was not written by save_to_disk. Give {ACCEPTED}.")
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises whatever a broken file leads it to
        raise SeedError(
            f"seed source {source!r}: the folder {path} cannot be loaded ({type(error).__name__}: {error}). "
            "Write it again with save_to_disk."
        ) from error
    yield from _dataset_rows(saved)


def _hub_rows(source: str) -> Iterator[SourceRow]:
    named = _HUB_NAME.fullmatch(source)
    if not named:
        raise SeedError(f"seed source {source!r} is not of the form hf://owner/name[@split]. Give {ACCEPTED}.")
    name, split = named["name"], named["split"] or "train"
    if Path(name).exists():  # load_dataset would prefer it to the hub
        raise SeedError(
            f"seed source {source!r}: the working folder holds a {name!r}, which would be loaded in its place. "
            "Rename it, start elsewhere, or give the path of a file in it."
        )
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises its own types and those of the hub, HTTP and file clients
        raise SeedError(
            f"seed source {source!r}: the split {split!r} of {name} cannot be loaded "
            f"({type(error).__name__}: {error}). {_hub_next_step(error)}"
        ) from error
    yield from _dataset_rows(loaded)


def _hub_next_step(error: Exception) -> str:
    import datasets

    local = "save the data set as a local .jsonl or .parquet file and name that"
    if datasets.config.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set and the data set is not in the cache: unset it to download once, or {local}."
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return f"Check the name; set HF_TOKEN if the data set is private or gated; or {local}."
    if isinstance(error, ConnectionError):
        return f"Check the network; set HF_HUB_OFFLINE=1 if the data set is in the cache; or {local}."
    return f"Choose the split with hf://owner/name@split; where a configuration must be chosen, {local}."


def _dataset_rows(dataset: Any) -> Iterator[SourceRow]:
    # As Arrow tables: columns that are not text (images, audio) are not decoded.
    return _arrow_rows(dataset.with_format("arrow").iter(_BATCH_ROWS))

"""Completions on disk, by what decides them: model, engine, prompt, sampling, seed.

``<cache>/<model digest>/<kind>/<digest of its requests>.parquet`` holds one shard. A shard is written whole or not at
all, and its rows are found by the digest of their request, whatever run, asset or settings they were generated for:
this is also the journal by which a killed stage resumes. Rows that failed are never in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from lance_dagster.engines.engine import Completion
from lance_dagster.errors import ArtifactError
from lance_dagster.storage.files import is_local, json_digest
from lance_dagster.storage.tables import read_table, write_table

COMPLETIONS = pa.schema(
    [
        ("request", pa.string()),  # digest of the request and the engine; the model is the folder's name
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Shard:
    """One file of the cache. ``used``: when it was written or last read, in seconds since 1970."""

    path: UPath
    model_digest: str
    kind: str
    rows: int
    size: int
    used: float


@dataclass(frozen=True)
class CompletionCache:
    """The shards under one folder. ``log`` is told what cannot be used."""

    folder: UPath
    log: Callable[[str], None]

    def find(self, model_digest: str, kind: str, requests: Sequence[str]) -> dict[str, Completion]:
        """What is there for these request digests. A shard that cannot be read is reported and does not count."""
        found: dict[str, Completion] = {}
        folder = self.folder / model_digest / kind
        if not requests or not folder.exists():
            return found
        wanted = pa.array(set(requests), pa.string())
        for path in sorted(folder.glob("*.parquet")):
            try:
                shard = read_table(path)
            except ArtifactError as error:
                self.log(f"cached completions are unreadable and will be generated again: {error}")
                continue
            if not shard.schema.equals(COMPLETIONS):
                self.log(f"cached completions of another layout are left alone: {path}")
                continue
            rows = shard.filter(pc.is_in(shard["request"], wanted))
            if rows.num_rows and is_local(path):
                os.utime(path.path)  # so that what is used stays when the cache is pruned
            keys, *values = (column.to_pylist() for column in rows.columns)
            found.update(zip(keys, map(Completion, *values), strict=True))
        return found

    def add(self, model_digest: str, kind: str, completions: Mapping[str, Completion]) -> None:
        """Write one shard: completions by the digest of their request."""
        columns = {name: [getattr(c, name) for c in completions.values()] for name in COMPLETIONS.names[1:]}
        table = pa.table({"request": list(completions), **columns}, schema=COMPLETIONS)
        write_table(self.folder / model_digest / kind / f"{json_digest(list(completions))}.parquet", table)

    def shards(self) -> Iterator[Shard]:
        """Every shard, without reading the texts."""
        if not self.folder.exists():
            return
        for path in sorted(self.folder.glob("*/*/*.parquet")):
            entry = path.fs.info(path.path)
            used = entry.get("mtime") or entry.get("LastModified") or entry.get("created") or 0.0
            seconds = used.timestamp() if hasattr(used, "timestamp") else float(used)
            yield Shard(path, path.parent.parent.name, path.parent.name, _rows(path), int(entry["size"]), seconds)

    def prune(self, most_bytes: int | None = None, unused_days: float | None = None) -> list[Shard]:
        """Remove what was unused for longer, then the least recently used until the rest fits. Returns what went.

        Nothing of an experiment's results depends on the cache: what is removed is generated again if it is asked for.
        """
        shards = sorted(self.shards(), key=lambda shard: shard.used)
        oldest = None if unused_days is None else time.time() - unused_days * 86_400
        size, removed = sum(shard.size for shard in shards), []
        for shard in shards:
            stale = oldest is not None and shard.used < oldest
            if stale or (most_bytes is not None and size > most_bytes):
                shard.path.unlink(missing_ok=True)
                size -= shard.size
                removed.append(shard)
        return removed


def _rows(path: UPath) -> int:
    """Number of rows by the file's footer; 0 for a damaged file, which is generated again."""
    try:
        with path.open("rb") as source:
            return int(pq.read_metadata(source).num_rows)
    except (pa.ArrowInvalid, OSError):
        return 0

"""Atomic files on any fsspec path: a reader sees the old content or the new, never a part."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from upath import UPath

from lance_dagster.errors import ArtifactError


@contextmanager
def replacing(path: UPath) -> Iterator[IO[bytes]]:
    """A binary file to write to; it becomes ``path`` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as sink:
            yield cast(IO[bytes], sink)
            sink.flush()
            if is_local(path):
                os.fsync(sink.fileno())
        if is_local(path):
            Path(temporary.path).replace(path.path)
        else:
            path.fs.mv(temporary.path, path.path)
    except BaseException:
        if temporary.exists():
            temporary.unlink()
        raise


def write_bytes(path: UPath, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with replacing(path) as sink:
        sink.write(data)


def write_json(path: UPath, value: Any) -> None:
    """Write JSON (no NaN, keys in their order) to ``path``, whole or not at all."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError as error:
        raise ArtifactError(f"{path} cannot be written: {error}. Find the number that is NaN or infinite.") from error
    write_bytes(path, text.encode())


def read_json(path: UPath, what: str) -> dict[str, Any]:
    """Read a JSON object; ``what`` names it in the ArtifactError of a file that is missing or no JSON object."""
    if not path.exists():
        raise ArtifactError(f"{what} does not exist ({path}); materialise it first")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{what} at {path} is not readable JSON ({error}); re-materialise it") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{what} at {path} holds a JSON {type(value).__name__}, not an object; re-materialise it")
    return cast(dict[str, Any], value)


def is_local(path: UPath) -> bool:
    """Whether ``path`` lies on this machine's file system."""
    return path.protocol in ("", "file", "local")


def json_digest(value: Any) -> str:
    """Hash of a JSON value, whatever the order of its keys (16 hex characters)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]

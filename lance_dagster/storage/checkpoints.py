"""Model checkpoints: a folder of safetensors named by its digest, and a manifest that is written last.

``<asset folder>/<partition>.json`` is the manifest of the current checkpoint; the weights lie beside it in
``<asset folder>/<partition>/<digest>/``. The manifest is replaced in one step after the folder is complete, so a
killed run leaves nothing that can be read as a checkpoint, and an older checkpoint stays until it is deleted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from upath import UPath

from lance_dagster.errors import ArtifactError
from lance_dagster.storage.files import is_local, json_digest, read_json, write_json

_LIBRARIES = ("lance-dagster", "torch", "transformers", "trl", "datasets", "lm-eval", "pyarrow", "numpy")
# Files of a model folder that decide what the model does; anything else in the folder is not part of the digest.
_CONTENT = (".safetensors", ".json", ".jinja", ".txt", ".model", ".py")
_NOT_CONTENT = ("pretraining.json", "training_args.json", "README.md")
_BLOCK = 1 << 22  # bytes that are read or copied at a time
_INCOMING = ".incoming"  # ends the names of folders that are still being copied


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint is and where it came from.

    ``location`` is where the weights lie; in the file it is relative to the manifest's own folder, so a store can be
    moved. ``files`` maps names to SHA-256, ``data`` table names to digests; ``digest`` covers the files alone, so equal
    weights have equal digests whatever run made them.
    """

    kind: str
    location: str
    digest: str
    files: dict[str, str]
    parent_digest: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide results."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hash_folder(folder: UPath) -> dict[str, str]:
    """SHA-256 of each content file directly in ``folder``; ArtifactError if none of them holds weights."""
    hashes = _content_hashes(folder)
    if not any(name.endswith(".safetensors") for name in hashes):
        raise ArtifactError(
            f"{folder} holds no .safetensors file, so it is not a checkpoint that can be loaded. Save the model with "
            "`save_pretrained`, which writes one, or give the folder of another model."
        )
    return hashes


def _content_hashes(folder: UPath) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if path.suffix in _CONTENT and path.name not in _NOT_CONTENT and path.is_file():
            hasher = hashlib.sha256()
            with path.open("rb") as source:
                while block := source.read(_BLOCK):
                    hasher.update(block)
            hashes[path.name] = hasher.hexdigest()
    return hashes


@contextmanager
def staging_folder() -> Iterator[Path]:
    """A local folder for a checkpoint in the making; it is gone afterwards, whatever happened."""
    folder = Path(tempfile.mkdtemp(prefix="lance-checkpoint-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def manifest_path(asset_folder: UPath, partition: str) -> UPath:
    return asset_folder / f"{partition}.json"


def commit_checkpoint(
    staged: Path, asset_folder: UPath, partition: str, *, kind: str, **provenance: Any
) -> CheckpointManifest:
    """Copy a finished folder into the store and write its manifest last. ``provenance``: CheckpointManifest fields.

    A folder of this digest that is already there stays if its files are the right ones, and is replaced if they are
    not (damaged, or left by a killed move on an object store). What killed commits left behind is deleted.
    """
    files = hash_folder(UPath(staged))
    digest = json_digest(files)
    target = asset_folder / partition / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".*{_INCOMING}"):
        _delete(leftover)
    if not target.exists() or _content_hashes(target) != files:
        incoming = target.parent / f".{digest}{_INCOMING}"
        incoming.mkdir(parents=True)
        for path in sorted(staged.iterdir()):
            if path.is_file():
                _copy(path, incoming / path.name)
        _delete(target)
        incoming.fs.mv(incoming.path.rstrip("/"), target.path.rstrip("/"), recursive=True)
    manifest = CheckpointManifest(
        kind=kind,
        location=f"{partition}/{digest}",
        digest=digest,
        files=files,
        versions=library_versions(),
        **provenance,
    )
    return write_manifest(manifest_path(asset_folder, partition), manifest)


def pass_on(
    parent: CheckpointManifest, asset_folder: UPath, partition: str, *, kind: str, **provenance: Any
) -> CheckpointManifest:
    """Write the manifest of a checkpoint whose weights are those of ``parent``, where they lie: nothing is copied."""
    experiment = f"{asset_folder.parent}/"
    inside = parent.location.startswith(experiment)
    manifest = CheckpointManifest(
        kind=kind,
        location=f"../{parent.location.removeprefix(experiment)}" if inside else parent.location,
        digest=parent.digest,
        files=parent.files,
        parent_digest=parent.digest,
        versions=library_versions(),
        **provenance,
    )
    return write_manifest(manifest_path(asset_folder, partition), manifest)


def _copy(source: Path, target: UPath) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, _BLOCK)
        write.flush()
        if is_local(target):
            os.fsync(write.fileno())


def _delete(folder: UPath) -> None:
    if folder.exists():
        folder.fs.rm(folder.path.rstrip("/"), recursive=True)


def write_manifest(path: UPath, manifest: CheckpointManifest) -> CheckpointManifest:
    """Write a manifest and return it as it is read: with a location that does not depend on its own place."""
    write_json(path, asdict(manifest))
    return read_manifest(path, manifest.kind)


def read_manifest(path: UPath, what: str) -> CheckpointManifest:
    """The manifest at ``path``; ``what`` names the checkpoint in the ArtifactError of one that cannot be read."""
    values = read_json(path, what)
    try:
        manifest = CheckpointManifest(**values)
        elsewhere = "://" in manifest.location or Path(manifest.location).is_absolute()
    except TypeError as error:
        raise ArtifactError(f"{what} at {path} is not a checkpoint manifest ({error}); re-materialise it") from error
    if elsewhere:
        return manifest
    folder, location = path.parent, manifest.location
    while location.startswith("../"):  # the weights of another asset; object stores know no ".."
        folder, location = folder.parent, location.removeprefix("../")
    return replace(manifest, location=str(folder / location))


def verify(manifest: CheckpointManifest, what: str) -> None:
    """Raise ArtifactError unless the folder holds exactly the files that the manifest names, with their digests."""
    folder = UPath(manifest.location)
    if not folder.exists():
        raise ArtifactError(f"{what}: its folder {folder} is gone; re-materialise it")
    found = _content_hashes(folder)
    for name, expected in manifest.files.items():
        if name not in found:
            raise ArtifactError(f"{what}: {folder / name} is missing; re-materialise it")
        if found[name] != expected:
            raise ArtifactError(
                f"{what}: {folder / name} does not match its digest (expected {expected[:16]}, found "
                f"{found[name][:16]}): the file was changed or is damaged. Re-materialise it."
            )
    if added := sorted(found.keys() - manifest.files.keys()):
        raise ArtifactError(f"{what}: {folder / added[0]} was added by hand; delete that file or re-materialise it")


@contextmanager
def local_folder(manifest: CheckpointManifest) -> Iterator[Path]:
    """The checkpoint as a folder on this machine; copied for the duration of the block if it lies elsewhere."""
    folder = UPath(manifest.location)
    if is_local(folder):
        yield Path(folder.path)
        return
    with staging_folder() as copy:
        for name in manifest.files:
            folder.fs.get_file((folder / name).path, str(copy / name))
        yield copy

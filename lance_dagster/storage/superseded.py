"""Weights that no manifest names any more: what later runs of a stage replaced, and what killed runs left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from lance_dagster.storage.checkpoints import read_manifest
from lance_dagster.storage.experiment_store import ExperimentStore
from lance_dagster.storage.files import is_local, read_json

CHECKPOINTS = ("initial_checkpoint", "sft_checkpoint", "dpo_checkpoint")


@dataclass(frozen=True)
class Superseded:
    """A folder of weights that can go, and its size in bytes."""

    folder: UPath
    size: int


def superseded(store: ExperimentStore) -> list[Superseded]:
    """Folders of weights of this experiment that no manifest names, neither one of its own nor of another experiment.

    The manifests of the whole store are read: a stage that is left out points at its parent's weights, and another
    experiment may start from a checkpoint of this one. Raises ArtifactError for one that cannot be read.
    """
    named = {_place(location) for location in _locations(store.base)}
    folders = [folder for folder in _weight_folders(store) if _place(str(folder)) not in named]
    return [Superseded(folder, sum(path.stat().st_size for path in folder.iterdir())) for folder in folders]


def remove(found: Superseded) -> None:
    """Delete a folder, and the folder of its partition if nothing else is in it."""
    found.folder.fs.rm(found.folder.path.rstrip("/"), recursive=True)
    partition = found.folder.parent
    if partition.exists() and not any(partition.iterdir()):
        partition.rmdir()


def _weight_folders(store: ExperimentStore) -> Iterator[UPath]:
    for asset in CHECKPOINTS:
        partitions = store.asset_folder(asset)
        for partition in sorted(partitions.iterdir(), key=str) if partitions.exists() else ():
            if partition.is_dir():
                yield from (path for path in sorted(partition.iterdir(), key=str) if path.is_dir())


def _locations(base: UPath) -> Iterator[str]:
    """Where the weights of every checkpoint manifest under a store lie."""
    for path in base.glob("**/*.json"):
        if {"location", "digest", "files"} <= read_json(path, "manifest").keys():
            yield read_manifest(path, "manifest").location


def _place(location: str) -> str:
    """A location as one text, however it is written."""
    path = UPath(location)
    return str(Path(path.path).resolve()) if is_local(path) else str(path).rstrip("/")

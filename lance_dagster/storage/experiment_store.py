"""Where the artifacts of one experiment lie.

``<store>/<experiment>/<asset>.parquet`` and ``<asset>/<iteration>.parquet`` are tables,
``<asset>/<iteration>.json`` manifests, with the weights of checkpoints in ``<asset>/<iteration>/<digest>/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from upath import UPath

from lance_dagster.errors import SettingsError
from lance_dagster.storage.checkpoints import CheckpointManifest, manifest_path, read_manifest

UNPARTITIONED = "current"  # stands in for the iteration in the paths of assets that have none
_PACKAGE = "package://"
# What an experiment makes once, before its first iteration; its branches share it.
SHARED_ASSETS = ("seed_instructions", "seed_reviews", "base_checkpoint", "initial_checkpoint", "baseline_scores")


def iteration_key(iteration: int) -> str:
    """The partition key of an iteration: zero-padded, because backfills run in the order of the text."""
    return f"{iteration:03d}"


def resolve_path(path: str, root: Path) -> str:
    """A path of the settings as others can open it.

    ``package://lance_dagster/…`` lies in the installed package, URLs and absolute paths stay, anything else is
    relative to ``root``, the project's folder. SettingsError for a package that is not installed.
    """
    if path.startswith(_PACKAGE):
        package, _, inner = path.removeprefix(_PACKAGE).partition("/")
        try:
            return str(files(package) / inner)
        except (ModuleNotFoundError, TypeError, ValueError) as error:
            raise SettingsError(
                f"{path}: there is no installed package {package!r}; install it, or give a folder"
            ) from error
    if "://" in path or Path(path).is_absolute():
        return path
    return str(root / path)


@dataclass(frozen=True)
class ExperimentStore:
    """Paths of one experiment's artifacts under a store (a folder or an fsspec URL).

    A branch of another experiment reads what it shares from there: everything that has no iteration, the report aside,
    and the iterations before ``first``. Nothing is copied.
    """

    base: UPath
    experiment: str
    parent: ExperimentStore | None = None
    first: int = 0
    completions: UPath | None = None

    def owner(self, asset: str, partition: str | None = None) -> ExperimentStore:
        """The store that an artifact lies in."""
        if self.parent is None:
            return self
        if partition in (None, UNPARTITIONED):
            shared = asset in SHARED_ASSETS or asset.removesuffix("_quarantine") in SHARED_ASSETS
        else:
            shared = int(str(partition)) < self.first
        return self.parent.owner(asset, partition) if shared else self

    @property
    def folder(self) -> UPath:
        return self.base / self.experiment

    @property
    def cache(self) -> UPath:
        """Completions by model digest: ``completions`` if given, else the folder of the parent, else an own one."""
        if self.completions is not None:
            return self.completions
        return self.folder / "completions" if self.parent is None else self.parent.cache

    def spending(self, asset: str, partition: str) -> UPath:
        """What generation for an asset has cost so far: operational figures, not part of any result."""
        return self.folder / "spending" / asset / f"{partition}.json"

    def items(self, model_digest: str) -> UPath:
        """What one model scored on each single evaluation document: written with its scores, for paired comparisons."""
        return self.folder / "eval_items" / f"{model_digest}.parquet"

    def asset_folder(self, asset: str) -> UPath:
        return self.folder / asset

    def table(self, asset: str, partition: str | None = None) -> UPath:
        """The Parquet file of an asset; the IO manager uses the same paths."""
        folder = self.owner(asset, partition).folder
        return folder / f"{asset}.parquet" if partition is None else folder / asset / f"{partition}.parquet"

    def manifest(self, asset: str, partition: str = UNPARTITIONED) -> UPath:
        return manifest_path(self.owner(asset, partition).asset_folder(asset), partition)

    def checkpoint(self, asset: str, partition: str = UNPARTITIONED) -> CheckpointManifest:
        """The manifest of a checkpoint asset; ArtifactError if it was not materialised."""
        label = f"{self.owner(asset, partition).experiment}/{asset}" + (
            "" if partition == UNPARTITIONED else f"[{partition}]"
        )
        return read_manifest(self.manifest(asset, partition), label)

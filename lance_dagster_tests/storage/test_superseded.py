"""Weights that no manifest names are found and deleted; all others stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from upath import UPath

from lance_dagster.errors import ArtifactError
from lance_dagster.storage.checkpoints import CheckpointManifest, commit_checkpoint, pass_on, verify, write_manifest
from lance_dagster.storage.experiment_store import ExperimentStore
from lance_dagster.storage.superseded import remove, superseded
from lance_dagster_tests.storage.test_checkpoints import staged


@pytest.fixture
def mini(store: UPath) -> ExperimentStore:
    return ExperimentStore(store, "mini")


def commit(store: ExperimentStore, source: Path, asset: str = "sft_checkpoint") -> CheckpointManifest:
    return commit_checkpoint(source, store.asset_folder(asset), "000", kind="sft")


def names(store: ExperimentStore) -> list[str]:
    return [each.folder.name for each in superseded(store)]


def test_what_a_later_run_replaced_is_found_with_its_size_and_deleted(mini: ExperimentStore, tmp_path: Path) -> None:
    assert superseded(mini) == []
    old, new = (commit(mini, staged(tmp_path / f"m{n}", bytes([n]) * 1000)) for n in range(2))
    [found] = superseded(mini)
    assert found.folder.name == old.digest
    assert found.size == 1000 + len("{}") + len("{{ messages }}")
    remove(found)
    assert superseded(mini) == []
    assert not UPath(old.location).exists()
    verify(new, "sft")


def test_weights_that_any_manifest_of_the_store_names_stay(mini: ExperimentStore, tmp_path: Path) -> None:
    old = commit(mini, staged(tmp_path / "old", b"old"))
    pass_on(old, mini.asset_folder("dpo_checkpoint"), "000", kind="dpo")
    commit(mini, staged(tmp_path / "new", b"new"))
    assert names(mini) == []
    mini.manifest("dpo_checkpoint", "000").unlink()
    assert names(mini) == [old.digest]
    other = ExperimentStore(mini.base, "other")
    write_manifest(other.manifest("base_checkpoint"), CheckpointManifest("base", old.location, old.digest, old.files))
    assert names(mini) == [] and names(other) == []


def test_what_a_killed_run_left_behind_is_found(mini: ExperimentStore, tmp_path: Path) -> None:
    made = commit(mini, staged(tmp_path / "new", b"new"))
    incoming = mini.asset_folder("sft_checkpoint") / "000" / ".abc.incoming"
    incoming.mkdir(parents=True)
    (incoming / "model.safetensors").write_bytes(b"half")
    mini.manifest("policy_model", "000").parent.mkdir(parents=True)
    mini.manifest("policy_model", "000").write_text("{}")  # no manifest of weights
    assert names(mini) == [".abc.incoming"]
    mini.manifest("sft_checkpoint", "000").unlink()
    assert set(names(mini)) == {".abc.incoming", made.digest}
    for each in superseded(mini):
        remove(each)
    assert not (mini.asset_folder("sft_checkpoint") / "000").exists()


def test_a_manifest_that_cannot_be_read_stops_it(mini: ExperimentStore, tmp_path: Path) -> None:
    for text in (b"old", b"new"):
        commit(mini, staged(tmp_path / text.decode(), text))
    mini.manifest("sft_checkpoint", "000").write_text("{")
    with pytest.raises(ArtifactError, match=r"000.json is not readable"):
        superseded(mini)

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from upath import UPath

from lance_dagster.errors import ArtifactError, SettingsError
from lance_dagster.settings import MAX_ITERATIONS
from lance_dagster.storage.checkpoints import commit_checkpoint
from lance_dagster.storage.experiment_store import ExperimentStore, iteration_key, resolve_path

ROOT = Path("/projects/mine")


def test_iterations_are_in_order_as_text() -> None:
    keys = [iteration_key(iteration) for iteration in range(MAX_ITERATIONS)]
    assert keys[:2] == ["000", "001"]
    assert keys == sorted(set(keys))


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("data/seed.jsonl", "/projects/mine/data/seed.jsonl"),
        ("/elsewhere/seed.jsonl", "/elsewhere/seed.jsonl"),
        ("s3://bucket/store", "s3://bucket/store"),
        ("memory://store", "memory://store"),
    ],
)
def test_a_relative_path_lies_in_the_project_and_others_stay(path: str, resolved: str) -> None:
    assert resolve_path(path, ROOT) == resolved


def test_completions_lie_in_the_folder_that_is_given_or_in_that_of_the_parent_or_in_an_own_one() -> None:
    own = ExperimentStore(UPath("/store"), "tiny")
    assert own.cache == UPath("/store/tiny/completions")
    assert ExperimentStore(UPath("/store"), "branched", own, 1).cache == own.cache
    given = UPath("/elsewhere")
    assert ExperimentStore(UPath("/store"), "branched", own, 1, given).cache == given


def test_a_package_path_lies_in_the_installed_package() -> None:
    resolved = Path(resolve_path("package://lance_dagster/mini/base/config.json", ROOT))
    assert resolved == Path(str(files("lance_dagster"))) / "mini" / "base" / "config.json"
    assert resolved.is_file()


@pytest.mark.parametrize("path", ["package://no_such_package/base", "package://", "package:///base"])
def test_a_package_that_is_not_installed_is_refused_with_the_next_step(path: str) -> None:
    with pytest.raises(SettingsError, match=r"no installed package .*; install it, or give a folder") as caught:
        resolve_path(path, ROOT)
    assert path in str(caught.value)


def test_artifacts_lie_where_the_module_says(store: UPath) -> None:
    mine = ExperimentStore(store, "mini")
    assert mine.table("seed_reviews") == store / "mini" / "seed_reviews.parquet"
    assert mine.table("sft_set", "003") == store / "mini" / "sft_set" / "003.parquet"
    assert mine.manifest("sft_checkpoint", "003") == store / "mini" / "sft_checkpoint" / "003.json"
    assert mine.manifest("base_checkpoint") == store / "mini" / "base_checkpoint" / "current.json"


def test_a_checkpoint_is_found_by_asset_and_iteration(store: UPath, tmp_path: Path) -> None:
    mine = ExperimentStore(store, "mini")
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "model.safetensors").write_bytes(b"weights")
    places = [("sft_checkpoint", "000"), ("sft_checkpoint", "001"), ("initial_checkpoint", "current")]
    made = {
        (asset, partition): commit_checkpoint(staged, mine.asset_folder(asset), partition, kind=asset)
        for asset, partition in places
    }
    for (asset, partition), manifest in made.items():
        assert mine.checkpoint(asset, partition) == manifest
    assert mine.checkpoint("initial_checkpoint") == made["initial_checkpoint", "current"]


def test_a_missing_checkpoint_is_named_by_asset_and_iteration(store: UPath) -> None:
    mine = ExperimentStore(store, "mini")
    with pytest.raises(ArtifactError, match=r"^mini/sft_checkpoint\[002\] does not exist .*materialise it first"):
        mine.checkpoint("sft_checkpoint", "002")
    with pytest.raises(ArtifactError, match=r"^mini/initial_checkpoint does not exist"):
        mine.checkpoint("initial_checkpoint")


def test_two_experiments_share_a_store_without_sharing_a_file(store: UPath) -> None:
    one, other = ExperimentStore(store, "mini"), ExperimentStore(store, "mini_clean")
    assert one.table("sft_set", "000") != other.table("sft_set", "000")
    assert one.cache != other.cache

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from upath import UPath

from lance_dagster.construction.policy import (
    CARRIED_TABLES,
    Ancestor,
    PolicyModel,
    build_policy,
    open_ancestor,
    promotion_digest,
)
from lance_dagster.errors import ArtifactError
from lance_dagster.records import PREFERENCE_SET, REVIEWED_SEED, SEED_INSTRUCTIONS, SFT_SET, table_of
from lance_dagster.storage.checkpoints import CheckpointManifest, commit_checkpoint, staging_folder
from lance_dagster.storage.experiment_store import UNPARTITIONED, ExperimentStore, iteration_key
from lance_dagster.storage.files import write_json
from lance_dagster.storage.tables import read_table, table_digest, write_table
from lance_dagster_tests.construction.scripted import seed, settings

SCHEMAS = dict(zip(CARRIED_TABLES, (REVIEWED_SEED, SFT_SET, PREFERENCE_SET), strict=True))


@pytest.fixture
def store(tmp_path: Path) -> ExperimentStore:
    """An experiment after setup and iteration 000, with policy_model[000]."""
    store = ExperimentStore(UPath(tmp_path / "store"), "toy")
    commit(store, "base_checkpoint", weights=1)
    commit(store, "initial_checkpoint", weights=2)
    build_policy(store, 0).save(store)
    complete_iteration(store, 0)
    return store


def commit(
    store: ExperimentStore, asset: str, partition: str = UNPARTITIONED, *, weights: int, **provenance: Any
) -> CheckpointManifest:
    """A checkpoint of random bytes, which ``weights`` decides."""
    with staging_folder() as staged:
        (staged / "model.safetensors").write_bytes(random.Random(weights).randbytes(2000))
        (staged / "config.json").write_text("{}")
        return commit_checkpoint(staged, store.asset_folder(asset), partition, kind=asset, **provenance)


def table(name: str, rows: int) -> pa.Table:
    """A table of so many equal rows of x, 0 and 1.0."""
    values: dict[pa.DataType, Any] = {pa.string(): "x", pa.int64(): 0, pa.float64(): 1.0}
    values |= {pa.list_(kind): [value] * 2 for kind, value in values.items()}
    row = {field.name: values[field.type] for field in SCHEMAS[name]}
    return table_of([row] * rows, SCHEMAS[name])


def write(store: ExperimentStore, name: str, iteration: int, rows: int) -> None:
    write_table(store.table(name, iteration_key(iteration)), table(name, rows))


def complete_iteration(store: ExperimentStore, iteration: int, weights: int = 10, rows: int = 3) -> None:
    """Tables and both checkpoints of an iteration, as its assets would leave them."""
    key = iteration_key(iteration)
    for name in CARRIED_TABLES:
        write(store, name, iteration, rows)
    data = {name: {name: table_digest(table(name, rows))} for name in ("sft_set", "preference_set")}
    sft = commit(store, "sft_checkpoint", key, weights=weights + iteration, data=data["sft_set"])
    commit(
        store,
        "dpo_checkpoint",
        key,
        weights=weights + iteration + 100,
        data=data["preference_set"],
        parent_digest=sft.digest,
    )


def weights_of(store: ExperimentStore, asset: str, partition: str = UNPARTITIONED) -> Path:
    return Path(store.checkpoint(asset, partition).location) / "model.safetensors"


# Building


def test_iteration_0_starts_from_the_initial_checkpoint_and_reads_no_table(store: ExperimentStore) -> None:
    policy = build_policy(store, 0)
    assert policy.model == Ancestor(
        "initial", "initial_checkpoint", UNPARTITIONED, store.checkpoint("initial_checkpoint").digest
    )
    assert [ancestor.label for ancestor in policy.ancestors] == ["base"]
    assert all(policy.earlier_table(store, name) is None for name in CARRIED_TABLES)


def test_a_later_iteration_starts_from_the_dpo_checkpoint_before_and_names_its_tables(store: ExperimentStore) -> None:
    policy = build_policy(store, 1)
    dpo = store.checkpoint("dpo_checkpoint", "000")
    assert policy.model == Ancestor("policy_001", "dpo_checkpoint", "000", dpo.digest)
    assert open_ancestor(store, policy.model) == dpo
    assert [ancestor.label for ancestor in policy.ancestors] == ["base", "initial"]
    for name in CARRIED_TABLES:
        assert policy.earlier_table(store, name) == read_table(store.table(name, "000"))


def test_every_iteration_knows_the_initial_model_it_descends_from(store: ExperimentStore) -> None:
    initial = store.checkpoint("initial_checkpoint").digest
    for iteration in (0, 1):
        assert build_policy(store, iteration).initial.digest == initial


def test_every_earlier_policy_model_is_an_ancestor_in_order(store: ExperimentStore) -> None:
    for iteration in (1, 2):
        build_policy(store, iteration).save(store)
        complete_iteration(store, iteration)
    policy = build_policy(store, 3)
    assert [entry.label for entry in policy.ancestors] == ["base", "initial", "policy_001", "policy_002"]
    assert [open_ancestor(store, entry).digest for entry in policy.ancestors] == [e.digest for e in policy.ancestors]


def test_a_manifest_is_read_as_it_was_saved(store: ExperimentStore) -> None:
    policy = build_policy(store, 1)
    policy.save(store)
    assert PolicyModel.load(store, 1) == policy
    assert PolicyModel.load(store, 1).digest == policy.digest


def test_building_twice_gives_the_same_manifest(store: ExperimentStore) -> None:
    assert build_policy(store, 1) == build_policy(store, 1)


# What is missing


def test_a_missing_previous_iteration_is_named_with_the_command_that_makes_it(store: ExperimentStore) -> None:
    with pytest.raises(ArtifactError, match=r"toy/dpo_checkpoint\[001\] has not been materialised") as failure:
        build_policy(store, 2)
    assert "dg launch --job toy_one_iteration --partition 001" in str(failure.value)


@pytest.mark.parametrize("name", CARRIED_TABLES)
def test_a_missing_table_of_the_previous_iteration_is_named_with_the_command(store: ExperimentStore, name: str) -> None:
    store.table(name, "000").unlink()
    with pytest.raises(ArtifactError, match=rf"toy/{name}\[000\] is missing.*--partition 000"):
        build_policy(store, 1)


def test_a_missing_initial_checkpoint_is_named_with_the_command_that_makes_it(store: ExperimentStore) -> None:
    store.manifest("initial_checkpoint").unlink()
    with pytest.raises(ArtifactError, match=r"toy/initial_checkpoint has not been.*dg launch --job toy_setup"):
        build_policy(store, 0)


def test_a_missing_policy_manifest_is_named(store: ExperimentStore) -> None:
    with pytest.raises(ArtifactError, match=r"toy/policy_model\[007\] does not exist"):
        PolicyModel.load(store, 7)


@pytest.mark.parametrize("content", [{}, {"iteration": 1}, {"iteration": 1, "model": {"label": "x"}}])
def test_a_file_that_is_no_policy_manifest_is_refused(store: ExperimentStore, content: dict[str, Any]) -> None:
    write_json(store.manifest("policy_model", "001"), content)
    with pytest.raises(ArtifactError, match=r"toy/policy_model\[001\] is not a policy manifest.*re-materialise"):
        PolicyModel.load(store, 1)


def test_a_table_that_the_manifest_does_not_name_is_refused_and_not_taken_for_none(store: ExperimentStore) -> None:
    with pytest.raises(ArtifactError, match=r"toy/policy_model\[001\] names no table 'candidate_ledger'"):
        build_policy(store, 1).earlier_table(store, "candidate_ledger")


# What has changed


@pytest.mark.parametrize("name", CARRIED_TABLES)
def test_a_table_of_an_earlier_iteration_that_was_rewritten_is_refused(store: ExperimentStore, name: str) -> None:
    policy = build_policy(store, 1)
    write(store, name, 0, rows=3)
    assert policy.earlier_table(store, name) is not None, "the same content again is the same table"
    write(store, name, 0, rows=4)
    with pytest.raises(ArtifactError, match=rf"{name}/000.parquet holds other content.*policy_model"):
        policy.earlier_table(store, name)


def test_a_checkpoint_that_was_replaced_is_refused(store: ExperimentStore) -> None:
    policy = build_policy(store, 1)
    commit(store, "dpo_checkpoint", "000", weights=99)
    with pytest.raises(ArtifactError, match=r"toy/dpo_checkpoint\[000\] now has digest.*Re-materialise policy_model"):
        open_ancestor(store, policy.model)


@pytest.mark.parametrize(
    ("asset", "partition", "iteration"), [("initial_checkpoint", UNPARTITIONED, 0), ("dpo_checkpoint", "000", 1)]
)
def test_damaged_weights_are_refused_when_building_and_when_opening(
    store: ExperimentStore, asset: str, partition: str, iteration: int
) -> None:
    policy = build_policy(store, iteration)
    weights = weights_of(store, asset, partition)
    damaged = bytearray(weights.read_bytes())
    damaged[1000] ^= 1
    weights.write_bytes(damaged)
    for use in (lambda: build_policy(store, iteration), lambda: open_ancestor(store, policy.model)):
        with pytest.raises(ArtifactError, match=rf"toy/{asset}.*model.safetensors does not match its digest"):
            use()


def test_missing_weights_are_refused(store: ExperimentStore) -> None:
    weights_of(store, "dpo_checkpoint", "000").unlink()
    with pytest.raises(ArtifactError, match="safetensors"):
        build_policy(store, 1)


@pytest.mark.parametrize("name", ["sft_set", "preference_set"])
def test_an_iteration_that_was_run_again_but_not_trained_again_is_refused(store: ExperimentStore, name: str) -> None:
    write(store, name, 0, rows=5)
    with pytest.raises(ArtifactError, match=rf"toy/{name}\[000\] has changed since.*out of date.*--partition 000"):
        build_policy(store, 1)


def test_an_iteration_whose_sft_was_trained_again_without_dpo_is_refused(store: ExperimentStore) -> None:
    data = {"sft_set": table_digest(table("sft_set", 3))}
    commit(store, "sft_checkpoint", "000", weights=77, data=data)
    with pytest.raises(ArtifactError, match=r"toy/sft_checkpoint\[000\] is now.*DPO is out of date.*--partition 000"):
        build_policy(store, 1)


# Promotion


def test_the_promotion_digest_changes_with_the_checkpoint(store: ExperimentStore) -> None:
    before = promotion_digest(store, 0)
    commit(store, "dpo_checkpoint", "000", weights=99)
    assert promotion_digest(store, 0) != before


@pytest.mark.parametrize("name", CARRIED_TABLES)
def test_the_promotion_digest_changes_with_each_carried_table(store: ExperimentStore, name: str) -> None:
    before = promotion_digest(store, 0)
    write(store, name, 0, rows=4)
    assert promotion_digest(store, 0) != before


def test_the_promotion_digest_changes_with_nothing_else(store: ExperimentStore) -> None:
    before = promotion_digest(store, 0)
    complete_iteration(store, 0)  # the same content again
    complete_iteration(store, 1, rows=9)
    commit(store, "initial_checkpoint", weights=5)
    write_table(store.table("candidate_ledger", "000"), table("sft_set", 1))
    commit(store, "dpo_checkpoint", "000", weights=110, metrics={"loss": 0.1}, settings={"beta": 0.2})
    assert promotion_digest(store, 0) == before


# Seed_t


def seed_of(store: ExperimentStore, policy: PolicyModel, **switches: Any) -> list[dict[str, Any]]:
    ice = seed("ice")
    row = {name: ice[name] for name in ("seed_id", "instruction", "response")}
    seeds = table_of([{**row, "source": "s", "position": 0}], SEED_INSTRUCTIONS)
    return policy.seed(store, settings(seed=switches), seeds)


@pytest.mark.parametrize(
    ("growth", "flawed", "read"),
    [
        ("original", True, []),
        ("merge_latest", False, ["sft_set"]),
        ("merge_latest", True, ["sft_set", "preference_set"]),
        ("merge", False, ["sft_set", "reviewed_seed"]),
        ("merge", True, ["sft_set", "preference_set", "reviewed_seed"]),
    ],
)
def test_seed_t_is_made_of_the_tables_that_the_manifest_names(
    store: ExperimentStore, growth: str, flawed: bool, read: list[str]
) -> None:
    policy = build_policy(store, 1)
    switches = {"growth": growth, "flawed_rows_reenter": flawed}
    assert seed_of(store, policy, **switches) == [seed("ice")]
    for name in CARRIED_TABLES:
        write(store, name, 0, rows=7)
        if name in read:
            with pytest.raises(ArtifactError, match=f"{name}/000.parquet holds other content"):
                seed_of(store, policy, **switches)
        else:
            assert seed_of(store, policy, **switches) == [seed("ice")]
        write(store, name, 0, rows=3)

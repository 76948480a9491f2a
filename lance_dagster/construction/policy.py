"""The policy model M_t: which weights iteration t starts from, and every earlier table it may read.

Algorithm 2 of the paper, lines 1 and 8: M_0 is the initial checkpoint, M_{t+1} the DPO checkpoint of iteration t.
The manifest is the only door to earlier iterations: it names their tables by digest, so an iteration that was
re-materialised since is noticed instead of read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

import pyarrow as pa
from upath import UPath

from lance_dagster.construction.assemble import grown_seed
from lance_dagster.errors import ArtifactError
from lance_dagster.settings import EvolutionSettings
from lance_dagster.storage.checkpoints import CheckpointManifest, verify
from lance_dagster.storage.experiment_store import UNPARTITIONED, ExperimentStore, iteration_key
from lance_dagster.storage.files import json_digest, read_json, write_json
from lance_dagster.storage.tables import read_table, table_digest

# Tables that the next iteration builds on.
CARRIED_TABLES = ("reviewed_seed", "sft_set", "preference_set")
# Tables that some settings make beside an asset, which is named here; carried where they are.
OPTIONAL_TABLES = {"rouge_index": "candidate_ledger"}


@dataclass(frozen=True)
class Ancestor:
    """An earlier model of this experiment. ``asset`` and ``partition`` say where its manifest lies."""

    label: str
    asset: str
    partition: str
    digest: str


@dataclass(frozen=True)
class PolicyModel:
    """The manifest of ``policy_model[t]``."""

    iteration: int
    model: Ancestor
    tables: dict[str, str] = field(default_factory=dict)  # table of iteration t-1 -> its digest
    ancestors: list[Ancestor] = field(default_factory=list)  # base, initial, and every earlier policy model

    @property
    def digest(self) -> str:
        return json_digest(asdict(self))

    @property
    def initial(self) -> Ancestor:
        """M_0 as this line of models started from it."""
        return next(entry for entry in [*self.ancestors, self.model] if entry.asset == "initial_checkpoint")

    def earlier_table(self, store: ExperimentStore, name: str) -> pa.Table | None:
        """A table of iteration t-1, checked against its digest; None in iteration 0."""
        if self.iteration == 0:
            return None
        if name not in self.tables:
            maker = OPTIONAL_TABLES.get(name)
            before = f"{maker}[{iteration_key(self.iteration - 1)}] under these settings, then " if maker else ""
            raise ArtifactError(
                f"{store.experiment}/policy_model[{iteration_key(self.iteration)}] names no table {name!r} of the "
                f"iteration before; re-materialise {before}it"
            )
        return read_table(store.table(name, iteration_key(self.iteration - 1)), self.tables[name])

    def seed(
        self, store: ExperimentStore, settings: EvolutionSettings, seed_instructions: pa.Table
    ) -> list[dict[str, Any]]:
        """Seed_t, ready to be reviewed."""
        growth = settings.seed.growth
        growing = growth != "original"
        flawed = growing and settings.seed.flawed_rows_reenter
        return grown_seed(
            self.iteration,
            seed_instructions,
            growth,
            settings.seed.max_rows,
            sft=self.earlier_table(store, "sft_set") if growing else None,
            preferences=self.earlier_table(store, "preference_set") if flawed else None,
            reviewed=self.earlier_table(store, "reviewed_seed") if growth == "merge" else None,
        )

    def save(self, store: ExperimentStore) -> None:
        write_json(store.manifest("policy_model", iteration_key(self.iteration)), asdict(self))

    @classmethod
    def load(cls, store: ExperimentStore, iteration: int) -> Self:
        """The manifest of ``policy_model[iteration]``; ArtifactError if it was not materialised."""
        key = iteration_key(iteration)
        label = _label(store, "policy_model", key)
        values = read_json(store.manifest("policy_model", key), label)
        try:
            return cls(
                iteration=values["iteration"],
                model=Ancestor(**values["model"]),
                tables=values["tables"],
                ancestors=[Ancestor(**entry) for entry in values["ancestors"]],
            )
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{label} is not a policy manifest ({error}); re-materialise it") from error


def build_policy(store: ExperimentStore, iteration: int) -> PolicyModel:
    """M_t from the initial checkpoint (t = 0) or from the previous iteration, which must be complete.

    Raises ArtifactError that names what is missing, damaged or out of date, and the command that makes it anew.
    """
    if iteration == 0:
        mend = f"Run `dg launch --job {store.experiment}_setup`, or materialise it in the web UI."
        initial = _complete_checkpoint(store, "initial_checkpoint", UNPARTITIONED, mend)
        base = store.checkpoint("base_checkpoint")
        return PolicyModel(
            0,
            Ancestor("initial", "initial_checkpoint", UNPARTITIONED, initial.digest),
            ancestors=[Ancestor("base", "base_checkpoint", UNPARTITIONED, base.digest)],
        )
    before = iteration_key(iteration - 1)
    owner = store.owner("dpo_checkpoint", before).experiment
    mend = (
        f"Run iteration {before} of experiment {owner} first: in the web UI, or "
        f"`dg launch --job {owner}_one_iteration --partition {before}`."
    )
    checkpoint = _complete_checkpoint(store, "dpo_checkpoint", before, mend)
    tables = {}
    for name in CARRIED_TABLES:
        path = store.table(name, before)
        if not path.exists():
            raise ArtifactError(f"{_label(store, name, before)} is missing. {mend}")
        tables[name] = table_digest(read_table(path))
    tables |= {name: table_digest(read_table(path)) for name, path in _optional_tables(store, before)}
    _refuse_half_made(store, before, checkpoint, tables, mend)
    previous = PolicyModel.load(store, iteration - 1)
    return PolicyModel(
        iteration,
        Ancestor(f"policy_{iteration_key(iteration)}", "dpo_checkpoint", before, checkpoint.digest),
        tables,
        [*previous.ancestors, previous.model],
    )


def _complete_checkpoint(store: ExperimentStore, asset: str, partition: str, mend: str) -> CheckpointManifest:
    label = _label(store, asset, partition)
    if not store.manifest(asset, partition).exists():
        raise ArtifactError(f"{label} has not been materialised, so there is no model to start from. {mend}")
    checkpoint = store.checkpoint(asset, partition)
    verify(checkpoint, label)
    return checkpoint


def _refuse_half_made(
    store: ExperimentStore, partition: str, dpo: CheckpointManifest, tables: dict[str, str], mend: str
) -> None:
    """An iteration that was run again but did not get as far as DPO has new tables beside an old model."""
    trained_on = dict(dpo.data)
    if store.manifest("sft_checkpoint", partition).exists():
        sft = store.checkpoint("sft_checkpoint", partition)
        trained_on |= sft.data
        if dpo.parent_digest != sft.digest:
            raise ArtifactError(
                f"{_label(store, 'dpo_checkpoint', partition)} was trained from {dpo.parent_digest}, but "
                f"{_label(store, 'sft_checkpoint', partition)} is now {sft.digest}: DPO is out of date. {mend}"
            )
    for name, digest in trained_on.items():
        if name in tables and tables[name] != digest:
            raise ArtifactError(
                f"{_label(store, name, partition)} has changed since {_label(store, 'dpo_checkpoint', partition)} was "
                f"trained (it had digest {digest}, now {tables[name]}): the model is out of date. {mend}"
            )


def manifest_of(store: ExperimentStore, ancestor: Ancestor) -> CheckpointManifest:
    """The manifest of an ancestor; ArtifactError if its place now holds another one. The weights are not looked at."""
    manifest = store.checkpoint(ancestor.asset, ancestor.partition)
    if manifest.digest != ancestor.digest:
        raise ArtifactError(
            f"{_label(store, ancestor.asset, ancestor.partition)} now has digest {manifest.digest}, but this iteration "
            f"was built on {ancestor.digest}: it was re-materialised since. Re-materialise policy_model of this "
            "iteration and what follows it."
        )
    return manifest


def open_ancestor(store: ExperimentStore, ancestor: Ancestor) -> CheckpointManifest:
    """``manifest_of`` an ancestor whose files are undamaged, which takes reading all of them."""
    manifest = manifest_of(store, ancestor)
    verify(manifest, _label(store, ancestor.asset, ancestor.partition))
    return manifest


def promotion_digest(store: ExperimentStore, iteration: int) -> str:
    """What iteration t hands to t + 1, in one digest: the DPO checkpoint and the tables that are carried over."""
    key = iteration_key(iteration)
    paths = [*(store.table(name, key) for name in CARRIED_TABLES), *(path for _, path in _optional_tables(store, key))]
    tables = [table_digest(read_table(path)) for path in paths]
    return json_digest([store.checkpoint("dpo_checkpoint", key).digest, *tables])


def _optional_tables(store: ExperimentStore, partition: str) -> list[tuple[str, UPath]]:
    paths = [(name, store.table(name, partition)) for name in OPTIONAL_TABLES]
    return [(name, path) for name, path in paths if path.exists()]


def _label(store: ExperimentStore, asset: str, partition: str) -> str:
    return f"{store.owner(asset, partition).experiment}/{asset}" + (
        "" if partition == UNPARTITIONED else f"[{partition}]"
    )

"""What a method is: how the data of one iteration is constructed. One file per method beside this one."""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa

from lance_dagster.construction.filters.contamination import EvaluationIndex
from lance_dagster.construction.ledger import Ledger
from lance_dagster.construction.policy import PolicyModel
from lance_dagster.construction.steps import StepContext
from lance_dagster.storage.experiment_store import ExperimentStore


class Method(Protocol):
    """The construction steps of one iteration, in the order in which the assets run them.

    Each returns the Arrow table of the asset of the same name (the ledger with more); schemas are in records.py.
    """

    def reviewed_seed(
        self, context: StepContext, policy: PolicyModel, store: ExperimentStore, seed_instructions: pa.Table
    ) -> pa.Table: ...

    def instruction_candidates(self, context: StepContext, reviewed: pa.Table) -> pa.Table: ...

    def preference_candidates(self, context: StepContext, reviewed: pa.Table) -> pa.Table: ...

    def candidate_ledger(
        self,
        context: StepContext,
        policy: PolicyModel,
        store: ExperimentStore,
        instruction_candidates: pa.Table,
        preference_candidates: pa.Table,
        reviewed: pa.Table,
        evaluation: EvaluationIndex,
    ) -> Ledger: ...

    def sft_set(
        self,
        context: StepContext,
        policy: PolicyModel,
        store: ExperimentStore,
        ledger: pa.Table,
        reviewed: pa.Table,
        seed_reviews: pa.Table,
    ) -> pa.Table: ...

    def preference_set(
        self, context: StepContext, policy: PolicyModel, store: ExperimentStore, ledger: pa.Table, reviewed: pa.Table
    ) -> pa.Table: ...

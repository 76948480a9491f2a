"""Replay, a control: the same real rows again and again, nothing generated.

With ``training.replay_seed``, ``replay_reviews`` and ``steps_of`` it trains on the rows that a run of another method
replays, for as many optimiser steps as that run takes.
"""

from __future__ import annotations

import pyarrow as pa

from lance_dagster.construction.filters.contamination import EvaluationIndex
from lance_dagster.construction.ledger import Ledger
from lance_dagster.construction.policy import PolicyModel
from lance_dagster.construction.steps import StepContext
from lance_dagster.methods.lance import Lance
from lance_dagster.records import CANDIDATE_LEDGER, CANDIDATES, CONTAMINATION_HITS, PREFERENCE_SET
from lance_dagster.storage.experiment_store import ExperimentStore


class Replay:
    """Reviews the seed, because ``replay_seed: accepted`` asks for it, and trains on real rows alone."""

    def __init__(self) -> None:
        self._lance = Lance()

    def reviewed_seed(
        self, context: StepContext, policy: PolicyModel, store: ExperimentStore, seed_instructions: pa.Table
    ) -> pa.Table:
        return self._lance.reviewed_seed(context, policy, store, seed_instructions)

    def instruction_candidates(self, context: StepContext, reviewed: pa.Table) -> pa.Table:
        return CANDIDATES.empty_table()

    def preference_candidates(self, context: StepContext, reviewed: pa.Table) -> pa.Table:
        return CANDIDATES.empty_table()

    def candidate_ledger(
        self,
        context: StepContext,
        policy: PolicyModel,
        store: ExperimentStore,
        instruction_candidates: pa.Table,
        preference_candidates: pa.Table,
        reviewed: pa.Table,
        evaluation: EvaluationIndex,
    ) -> Ledger:
        return Ledger(CANDIDATE_LEDGER.empty_table(), CONTAMINATION_HITS.empty_table(), 0)

    def sft_set(
        self,
        context: StepContext,
        policy: PolicyModel,
        store: ExperimentStore,
        ledger: pa.Table,
        reviewed: pa.Table,
        seed_reviews: pa.Table,
    ) -> pa.Table:
        return self._lance.sft_set(context, policy, store, ledger, reviewed, seed_reviews)

    def preference_set(
        self, context: StepContext, policy: PolicyModel, store: ExperimentStore, ledger: pa.Table, reviewed: pa.Table
    ) -> pa.Table:
        return PREFERENCE_SET.empty_table()

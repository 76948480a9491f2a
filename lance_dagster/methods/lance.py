"""LANCE (arXiv 2412.15151), Algorithm 1: review, two branches by score, filter and reward, two cumulative sets."""

from __future__ import annotations

import pyarrow as pa

from lance_dagster.construction import assemble
from lance_dagster.construction.filters.contamination import EvaluationIndex
from lance_dagster.construction.generate import flawed_responses, new_instructions
from lance_dagster.construction.ledger import Ledger, build_ledger
from lance_dagster.construction.policy import PolicyModel
from lance_dagster.construction.review import review_seed
from lance_dagster.construction.steps import StepContext
from lance_dagster.storage.experiment_store import ExperimentStore


class Lance:
    """The paper's method. Its switches are in ``ConstructionSettings``, ``SeedSettings`` and ``TrainingSettings``."""

    def reviewed_seed(
        self, context: StepContext, policy: PolicyModel, store: ExperimentStore, seed_instructions: pa.Table
    ) -> pa.Table:
        seed = policy.seed(store, context.settings, seed_instructions)
        again = context.settings.construction.rereview_seeds
        known = None if again else policy.earlier_table(store, "reviewed_seed")
        return review_seed(context, seed, known)

    def instruction_candidates(self, context: StepContext, reviewed: pa.Table) -> pa.Table:
        wanted = "sft" in context.settings.training.stages or context.settings.construction.pairs == "own_responses"
        return new_instructions(context, reviewed if wanted else reviewed.slice(0, 0))

    def preference_candidates(self, context: StepContext, reviewed: pa.Table) -> pa.Table:
        wanted = "dpo" in context.settings.training.stages and context.settings.construction.pairs == "flawed"
        return flawed_responses(context, reviewed if wanted else reviewed.slice(0, 0))

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
        everything = context.settings.construction.filters.rouge_scope == "all"
        earlier = policy.earlier_table(store, "rouge_index") if everything else None
        return build_ledger(context, instruction_candidates, preference_candidates, reviewed, evaluation, earlier)

    def sft_set(
        self,
        context: StepContext,
        policy: PolicyModel,
        store: ExperimentStore,
        ledger: pa.Table,
        reviewed: pa.Table,
        seed_reviews: pa.Table,
    ) -> pa.Table:
        earlier = policy.earlier_table(store, "sft_set")
        return assemble.sft_set(context, ledger, reviewed, seed_reviews, earlier)

    def preference_set(
        self, context: StepContext, policy: PolicyModel, store: ExperimentStore, ledger: pa.Table, reviewed: pa.Table
    ) -> pa.Table:
        earlier = policy.earlier_table(store, "preference_set")
        return assemble.preference_set(context, ledger, reviewed, earlier)

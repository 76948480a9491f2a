"""One experiment as the assets see it: settings, store, prompts, and how to open models and write results."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import dagster as dg
import pyarrow as pa
from upath import UPath

from lance_dagster.construction.filters.contamination import EvaluationIndex
from lance_dagster.construction.policy import PolicyModel, manifest_of, open_ancestor
from lance_dagster.construction.steps import StepContext
from lance_dagster.engines.accounting import SpendingLog
from lance_dagster.engines.batch import BatchRunner
from lance_dagster.engines.completion_cache import CompletionCache
from lance_dagster.engines.engine import TextEngine
from lance_dagster.engines.registry import ENGINES, engine_identity, engine_kind, gpus_of
from lance_dagster.errors import LanceError
from lance_dagster.methods.method import Method
from lance_dagster.methods.registry import method_named
from lance_dagster.prompts.prompt_sets import PromptSet, load_prompt_set
from lance_dagster.settings import EvolutionSettings, Section
from lance_dagster.storage.checkpoints import local_folder
from lance_dagster.storage.experiment_store import SHARED_ASSETS, ExperimentStore, iteration_key, resolve_path
from lance_dagster.storage.files import json_digest
from lance_dagster.storage.tables import table_digest

P = ParamSpec("P")
R = TypeVar("R")

OWNERS = ["team:lance"]
POOL = "lance_loop"  # one run at a time, whatever the run queue allows: dagster.yaml sets the granularity


@dataclass(frozen=True)
class Experiment:
    """Name, settings and the folder that relative paths start from."""

    name: str
    settings: EvolutionSettings
    root: Path

    @cached_property
    def store(self) -> ExperimentStore:
        base, branch = UPath(resolve_path(self.settings.store, self.root)), self.settings.start_from
        parent = None if branch is None else ExperimentStore(base, branch.experiment)
        cache = self.settings.engine.cache
        completions = None if cache is None else UPath(resolve_path(cache, self.root))
        return ExperimentStore(base, self.name, parent, self.settings.first_iteration, completions)

    @cached_property
    def prompts(self) -> PromptSet:
        name = self.settings.prompts.set
        return load_prompt_set(resolve_path(name, self.root) if name.endswith((".yaml", ".yml")) else name)

    @cached_property
    def method(self) -> Method:
        return method_named(self.settings.method)

    @cached_property
    def iterations(self) -> dg.StaticPartitionsDefinition:
        """Iterations that this experiment makes; those before belong to the experiment that it branches from."""
        own = range(self.settings.first_iteration, self.settings.iterations)
        return dg.StaticPartitionsDefinition([iteration_key(i) for i in own])

    @property
    def tasks_path(self) -> str | None:
        """The folder of the evaluation tasks, resolved."""
        path = self.settings.evaluation.include_path
        return None if path is None else resolve_path(path, self.root)

    @property
    def accelerate_config(self) -> str | None:
        """The file that says on how many GPUs stages are trained, resolved."""
        path = self.settings.training.accelerate_config
        return None if path is None else resolve_path(path, self.root)

    @property
    def io_manager_key(self) -> str:
        return f"{self.name}_tables"

    @property
    def asked_by(self) -> str:
        """For ``uses``: what decides which texts the evaluation asks; nothing where contamination is off."""
        names = [f"evaluation.{name}" for name in ("tasks", "include_path", "question_fields")]
        names += [f"construction.filters.{name}" for name in ("contamination", "contamination_words")]
        return self.values(*names) if self.settings.construction.filters.contamination != "off" else ""

    def evaluation_index(self, *, always: bool = False) -> EvaluationIndex:
        """What the evaluation tasks ask and answer; where contamination is off, nothing unless ``always``."""
        filters = self.settings.construction.filters
        if filters.contamination == "off" and not always:
            return EvaluationIndex()
        from lance_dagster.evaluation.benchmarks import evaluation_texts

        return EvaluationIndex(evaluation_texts(self.settings.evaluation, self.tasks_path), filters.contamination_words)

    def key(self, asset: str, iteration: int | None = None) -> dg.AssetKey:
        """The key of an asset (of one of its iterations): in a branch, that of the experiment which makes it."""
        branch = self.settings.start_from
        earlier = iteration is not None and iteration < self.settings.first_iteration
        shared = branch is not None and (asset in SHARED_ASSETS or earlier)
        return dg.AssetKey([branch.experiment if branch is not None and shared else self.name, asset])

    def values(self, *names: str) -> str:
        """Some settings by their dotted names ('construction.threshold') as one text, for ``uses`` of ``asset``."""
        plain = self.settings.model_dump(mode="json")
        return json.dumps({name: functools.reduce(operator.getitem, name.split("."), plain) for name in sorted(names)})

    def asset(
        self,
        name: str,
        kinds: set[str],
        uses: Sequence[Section | str],
        *,
        description: str,
        inputs: Sequence[str] = (),
        deps: Sequence[str | dg.AssetDep] = (),
        partitioned: bool = True,
    ) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """``@dg.asset`` with what all assets of an experiment have in common.

        ``uses``: the settings (sections, or single ones by ``values``) and template digests that decide the content;
        they make up the code version, so a change of one of them shows the assets that it decides, and no others, as
        out of date. ``inputs`` are tables that the function takes as arguments of the same names; ``deps`` are read
        from the store.
        """
        parts = [entry if isinstance(entry, str) else entry.model_dump(mode="json") for entry in uses]

        def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
            return dg.asset(
                key=self.key(name),
                group_name=self.name,
                description=description,
                kinds=kinds,
                owners=OWNERS,
                tags={"lance/experiment": self.name, "lance/method": self.settings.method},
                code_version=json_digest(parts),
                pool=POOL,
                io_manager_key=self.io_manager_key,
                ins={table: dg.AssetIn(key=self.key(table)) for table in inputs},
                deps=[self.key(dep) if isinstance(dep, str) else dep for dep in deps],
                partitions_def=self.iterations if partitioned else None,
            )(clear_failures(function))

        return decorate

    @contextmanager
    def step(
        self, context: dg.AssetExecutionContext, judge: Literal["policy", "initial"] = "policy"
    ) -> Iterator[tuple[StepContext, PolicyModel]]:
        """A construction step of the run's iteration, done by M_t or by M_0."""
        policy = PolicyModel.load(self.store, int(context.partition_key))
        spending = self.store.spending(context.asset_key.path[-1], context.partition_key)
        with self.construction(policy, context.log.info, spending, judge) as step:
            yield step, policy
        self._prune_cache(context.log.info)

    @contextmanager
    def construction(
        self,
        policy: PolicyModel,
        log: Callable[[str], None],
        spending: UPath,
        judge: Literal["policy", "initial"] = "policy",
    ) -> Iterator[StepContext]:
        """A construction step that is done by M_t or by M_0; ``spending`` is the file of its accounts.

        The weights are read, checked and loaded when something must be generated, not for cached texts, and given up
        at the end of the block.
        """
        engine, model = self.settings.engine, self.settings.model
        worker = policy.initial if judge == "initial" else policy.model
        digest = manifest_of(self.store, worker).digest
        kind, reason = engine_kind(engine, model)
        with ExitStack() as stack:

            def load() -> TextEngine:
                log(f"loading {worker.label} ({digest}) into {kind} ({reason})")
                folder = stack.enter_context(local_folder(open_ancestor(self.store, worker)))
                loaded = ENGINES[kind](folder, digest, model, engine)
                stack.callback(loaded.close)
                runner.usage.gpus = gpus_of(kind, engine, model)
                return loaded

            runner = BatchRunner(
                load,
                digest,
                engine_identity(kind, engine, model),
                self.store.cache,
                engine.shard_rows,
                log,
                engine.max_failed_share,
                engine.price,
                engine.max_stage_cost,
                SpendingLog(spending, engine.price),
            )
            yield StepContext(policy.iteration, self.settings, self.prompts, runner, log)

    def _prune_cache(self, log: Callable[[str], None]) -> None:
        """Keep the size limit of the settings, once a stage has what it needs."""
        limit = self.settings.engine.cache_gb
        if limit is None:
            return
        removed = CompletionCache(self.store.cache, log).prune(most_bytes=int(limit * (1 << 30)))
        if removed:
            rows = sum(shard.rows for shard in removed)
            log(f"completions over engine.cache_gb ({limit:g}): removed {rows:,} rows that were not used for longest")


def table_result(table: pa.Table, metadata: Mapping[str, Any] | None = None) -> dg.MaterializeResult[pa.Table]:
    """A table on its way to the IO manager, with its digest as the data version."""
    return dg.MaterializeResult(
        value=table, data_version=dg.DataVersion(table_digest(table)), metadata=dict(metadata or {})
    )


def clear_failures(function: Callable[P, R]) -> Callable[P, R]:
    """Turn the project's own errors into a Dagster failure that shows the message alone and is not retried."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except LanceError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error

    return run

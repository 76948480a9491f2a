"""The `ray` engine: another engine on every worker of a Ray cluster.

Workers are actors that load the checkpoint once and stay for the whole stage. (Ray Data would start its actors anew for
every shard, and load the model each time.) Each takes the next piece of a shard when it is done with one. A worker that
dies is started again, on another node if need be, and its pieces are generated again; as every request has a seed of
its own, the texts are the same. https://docs.ray.io/en/latest/ray-core/fault_tolerance/actors.html
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from lance_dagster.engines.engine import Completion, GenerationRequest, TextEngine
from lance_dagster.engines.ray_cluster import join_cluster
from lance_dagster.errors import GenerationError
from lance_dagster.settings import EngineSettings, ModelSettings, RaySettings

_PIECES_PER_WORKER = 4  # of a shard: enough that workers end at about the same time
_SMALLEST_PIECE = 64  # requests; less would leave the worker's batches half empty
_AHEAD = 2  # pieces that lie at a worker, so that it never waits for the next one


class RayEngine:
    """Starts the workers that ``engine.ray`` asks for. Raises GenerationError where they cannot be had."""

    def __init__(self, folder: Path, digest: str, model: ModelSettings, engine: EngineSettings) -> None:
        from lance_dagster.engines.registry import engine_identity

        self.model_digest = digest
        # That of the inner engine: where it runs does not change what it writes.
        self.identity = engine_identity("ray", engine, model)
        with ExitStack() as stack:
            join_cluster(engine.ray, stack)
            # Kept as long as the workers: one that is started again fetches them anew.
            self._files = {} if engine.ray.shared_folder else _sent(folder)
            self._workers = _start(folder, digest, model, engine, self._files)
            stack.callback(_end, self._workers)
            _wait_for(self._workers, engine.ray)
            stack.callback(_close_inner, self._workers)
            self._stack = stack.pop_all()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        import ray

        size = max(_SMALLEST_PIECE, math.ceil(len(requests) / (_PIECES_PER_WORKER * len(self._workers))))
        waiting = [range(start, min(start + size, len(requests))) for start in range(0, len(requests), size)][::-1]
        answers: dict[int, Completion] = {}
        running: dict[Any, tuple[Any, range]] = {}
        free = [worker for _ in range(_AHEAD) for worker in self._workers][::-1]
        while waiting or running:
            while waiting and free:
                worker, piece = free.pop(), waiting.pop()
                running[worker.generate.remote([requests[i] for i in piece])] = worker, piece
            [done], _ = ray.wait(list(running), num_returns=1)
            worker, piece = running.pop(done)
            answers.update(zip(piece, _result(done), strict=True))
            free.append(worker)
        return [answers[i] for i in range(len(requests))]

    def close(self) -> None:
        self._stack.close()


class _Worker:
    """What runs on the cluster: an inner engine, on this node's own copy of the checkpoint."""

    def __init__(
        self, inner: str, digest: str, model: ModelSettings, engine: EngineSettings, folder: str, files: dict[str, Any]
    ) -> None:
        import ray

        from lance_dagster.engines.registry import ENGINES

        self._copy = tempfile.TemporaryDirectory(prefix="lance_ray_")
        source = Path(folder)
        if files:
            source = Path(self._copy.name)
            for name, content in files.items():
                (source / name).write_bytes(ray.get(content))
        self._engine: TextEngine = ENGINES[inner](source, digest, model, engine)

    def place(self) -> tuple[str, int]:
        """Its node and its process id; answered once the model is loaded."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        return self._engine.generate(requests)

    def close(self) -> None:
        self._engine.close()


def _sent(folder: Path) -> dict[str, Any]:
    """The files of a checkpoint in Ray's object store, by their names."""
    import ray

    return {path.name: ray.put(path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()}


def _start(folder: Path, digest: str, model: ModelSettings, engine: EngineSettings, files: dict[str, Any]) -> list[Any]:
    """The worker actors. They may not run yet."""
    import ray

    chosen = engine.ray
    actor = ray.remote(_Worker).options(
        num_cpus=chosen.cpus_per_worker,
        num_gpus=chosen.gpus_per_worker,
        max_restarts=chosen.restarts,
        max_task_retries=chosen.restarts,
        scheduling_strategy="SPREAD",
    )
    return [
        actor.remote(chosen.inner, digest, model, engine, str(folder.resolve()), files) for _ in range(chosen.workers)
    ]


def _wait_for(workers: list[Any], settings: RaySettings) -> None:
    """Until every worker has loaded the model."""
    import ray

    _, late = ray.wait(
        [worker.place.remote() for worker in workers], num_returns=len(workers), timeout=settings.start_timeout_s
    )
    if late:
        there = {name: count for name, count in ray.cluster_resources().items() if name in ("CPU", "GPU")}
        raise GenerationError(
            f"{len(late)} of {len(workers)} Ray workers had not loaded the model after {settings.start_timeout_s:g} s. "
            f"They ask for {settings.cpus_per_worker:g} CPUs and {settings.gpus_per_worker:g} GPUs each, the cluster "
            f"has {there}. Lower engine.ray.workers or what each asks for, or raise engine.ray.start_timeout_s."
        )
    for worker in workers:
        _result(worker.place.remote())


def _result(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError

    try:
        return ray.get(reference)
    except GenerationError as error:  # of the inner engine; Ray raises it as an error of both types
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise GenerationError(f"on a Ray worker: {cause}") from error
    except RayActorError as error:
        raise GenerationError(
            f"a Ray worker died, also after it was started again ({error}). Texts of earlier shards are kept. If its "
            "node ran out of memory, give each worker more CPUs or GPUs, so that fewer share a node."
        ) from error
    except RayError as error:
        raise GenerationError(f"Ray stopped: {error}. Texts of earlier shards are kept.") from error


def _close_inner(workers: list[Any]) -> None:
    """Let the inner engines end their own processes."""
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():  # else the program has left the cluster, and its workers with it
        closing = [worker.close.remote() for worker in workers]
        with suppress(RayError):
            ray.wait(closing, num_returns=len(closing), timeout=30)


def _end(workers: list[Any]) -> None:
    import ray

    if ray.is_initialized():
        for worker in workers:
            ray.kill(worker)

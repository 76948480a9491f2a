"""The cached completions of an experiment as a table of text: which model wrote how many of which kind."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable

from lance_dagster.engines.completion_cache import Shard
from lance_dagster.storage.checkpoints import read_manifest
from lance_dagster.storage.experiment_store import ExperimentStore

_CHECKPOINTS = ("initial_checkpoint", "sft_checkpoint", "dpo_checkpoint")


def cache_table(shards: Iterable[Shard], store: ExperimentStore) -> str:
    """One line per model and kind, and their sum. A model that is no checkpoint of the experiment now is 'unknown'."""
    groups: dict[tuple[str, str], list[Shard]] = defaultdict(list)
    for shard in shards:
        groups[shard.model_digest, shard.kind].append(shard)
    if not groups:
        return f"no cached completions in {store.cache}"
    names = _names(store)
    lines = [f"{'model':<18}{'written by':<26}{'kind':<18}{'completions':>12}{'MiB':>9}{'last used':>18}"]
    for (digest, kind), own in sorted(groups.items(), key=lambda item: min(shard.used for shard in item[1])):
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(shard.used for shard in own)))
        lines.append(f"{digest:<18}{names.get(digest, 'unknown'):<26}{kind:<18}{_sum(own)}{used:>18}")
    lines.append(f"{'all':<62}{_sum([shard for own in groups.values() for shard in own])}")
    return "\n".join(lines)


def _sum(shards: list[Shard]) -> str:
    return f"{sum(shard.rows for shard in shards):>12,}{sum(shard.size for shard in shards) / (1 << 20):>9.1f}"


def _names(store: ExperimentStore) -> dict[str, str]:
    """Digest of each checkpoint that the store holds now, with its asset and iteration."""
    names = {}
    for asset in _CHECKPOINTS:
        for path in sorted(store.asset_folder(asset).glob("*.json")):
            label = asset if path.stem == "current" else f"{asset}[{path.stem}]"
            names[read_manifest(path, label).digest] = label
    return names

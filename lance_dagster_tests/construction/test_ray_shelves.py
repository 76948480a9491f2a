"""The similarity join with its pool on a Ray cluster of two nodes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lance_dagster.construction.filters import ray_shelves, similarity_join
from lance_dagster.construction.filters.ray_shelves import RayShelves
from lance_dagster.construction.filters.rouge_l import Statistic, tokens_of
from lance_dagster.construction.filters.shelves import Comparison, InMemory, Shelves
from lance_dagster.construction.filters.similarity_join import SimilarityJoin, Verdicts
from lance_dagster.construction.filters.words import Vocabulary, WordRows
from lance_dagster.engines.ray_cluster import join_cluster
from lance_dagster.errors import ClusterError, SettingsError
from lance_dagster.settings import RaySettings
from lance_dagster_tests.construction.scripted import INSTRUCTION, LOW, bench, fates, filters, unlike
from lance_dagster_tests.ray_nodes import two_nodes

ROWS, POOL = 400, 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes(max_direct_call_object_size=0) as cluster:  # small shelves, too, are objects of a node
        yield cluster


@pytest.fixture
def joined_cluster(cluster: Any) -> Iterator[Any]:
    with ExitStack() as stack:
        join_cluster(RaySettings(address=cluster.address), stack)
        yield cluster


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that a few rows make many shelves, which are merged."""
    for name, value in {"_BLOCK": 32, "_LEAF": 8, "_MERGED": 3}.items():
        monkeypatch.setattr(similarity_join, name, value)


def numbered(statistic: Statistic) -> WordRows:
    """Rows of which about half resemble an earlier one."""
    rng = random.Random(3)
    texts: list[str] = []
    for _ in range(ROWS):
        if texts and rng.random() < 0.5:
            words = rng.choice(texts).split()
            words[rng.randrange(len(words))] = f"w{rng.randrange(400)}"
        else:
            words = [f"w{rng.randrange(400)}" for _ in range(rng.randrange(6, 40))]
        texts.append(" ".join(words))
    return WordRows.of(texts, tokens_of(statistic, "rouge_score"), Vocabulary())


def verdicts(statistic: Statistic, shelves: Shelves) -> Verdicts:
    rows, everyone = numbered(statistic), np.arange(ROWS)
    join = SimilarityJoin(Comparison(statistic, (0.7, 0.6), 0.5), shelves)
    join.add(rows.take(everyone[:POOL]), everyone[:POOL])
    return join.keep_first(rows, everyone[POOL:], everyone[POOL:])


@pytest.mark.usefixtures("joined_cluster")
@pytest.mark.parametrize("statistic", ["f", "any", "union_lcs"])
def test_verdicts_are_those_of_a_pool_in_memory(statistic: Statistic) -> None:
    here, there = verdicts(statistic, InMemory()), verdicts(statistic, RayShelves(RaySettings(), print))
    assert there.kept.tolist() == here.kept.tolist()
    assert there.value.tolist() == here.value.tolist()
    assert there.against.tolist() == here.against.tolist()
    assert 50 < here.kept[0].sum() < ROWS - POOL - 50


class LosesANode(RayShelves):
    """As soon as shelves lie on the node that is not the head's, and nowhere else, it is gone; ``lost``: those."""

    def __init__(self, cluster: Any) -> None:
        super().__init__(RaySettings(), print)
        self._cluster, self.lost = cluster, 0

    def nearest(self, handles: Any, rows: WordRows) -> Any:
        import ray
        from ray.experimental import get_object_locations

        if handles and not self.lost:
            ray.wait(list(handles), num_returns=len(handles), fetch_local=False)
            (worker,) = self._cluster.worker_nodes
            places = get_object_locations(handles).values()
            self.lost = sum(place["node_ids"] == [worker.node_id] for place in places)
            if self.lost:
                self._cluster.remove_node(worker, allow_graceful=False)
                self._cluster.add_node(num_cpus=1)
        return super().nearest(handles, rows)


def test_shelves_of_a_node_that_is_lost_are_made_again(joined_cluster: Any) -> None:
    shelves = LosesANode(joined_cluster)
    assert verdicts("f", shelves).kept.tolist() == verdicts("f", InMemory()).kept.tolist()
    assert shelves.lost > 0


def test_what_is_wrong_with_the_rows_is_no_failure_of_the_cluster(
    joined_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(shelf: Any, rows: WordRows) -> Any:
        raise SettingsError("two texts cannot be compared")

    monkeypatch.setattr(ray_shelves, "_look_up", refusing)
    with pytest.raises(SettingsError, match=r"^two texts cannot be compared$"):
        verdicts("f", RayShelves(RaySettings(), print))


def test_a_cluster_without_a_free_cpu_is_waited_for_and_named(
    joined_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    class Other:
        def there(self) -> bool:
            return True

    others = [ray.remote(Other).options(num_cpus=1).remote() for _ in range(2)]
    ray.get([other.there.remote() for other in others])
    monkeypatch.setattr(ray_shelves, "_SECONDS_BETWEEN_LINES", 0.5)
    lines: list[str] = []
    with pytest.raises(ClusterError, match=r"got nothing done .* for 2 s: 0 of its 2 CPUs are free"):
        verdicts("f", RayShelves(RaySettings(start_timeout_s=2), lines.append))
    assert lines[0].startswith("ROUGE-L waits for the Ray cluster since ")
    assert lines[0].endswith(" s: 0 of its 2 CPUs are free")


def test_the_ledger_is_the_same_with_the_comparison_on_the_cluster(tmp_path: Path, cluster: Any) -> None:
    texts = [unlike(1), f"{unlike(1)} too", unlike(2), f"too {unlike(2)}", unlike(3), unlike(4)]
    construction = {**filters(rouge_scope="iteration"), "samples": len(texts)}
    engine = {"ray": {"rouge_join": True, "address": cluster.address}}
    here = bench(tmp_path / "here", instructions=texts, construction=construction)
    there = bench(tmp_path / "there", instructions=texts, construction=construction, engine=engine)
    rows, ours = here.ledger(LOW), there.ledger(LOW)
    assert fates(ours, INSTRUCTION) == fates(rows, INSTRUCTION) == [None, "similar", None, "similar", None, None]
    assert [row["rouge_l_against"] for row in ours] == [row["rouge_l_against"] for row in rows]
    assert "ROUGE-L is compared on the Ray cluster of engine.ray" in there.lines


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    engine = {"ray": {"rouge_join": True, "address": "127.0.0.1:1"}}
    made = bench(tmp_path, construction=filters(rouge_scope="iteration"), engine=engine)
    with pytest.raises(ClusterError, match=r"engine.ray.address: no Ray cluster at 127.0.0.1:1"):
        made.ledger(LOW)

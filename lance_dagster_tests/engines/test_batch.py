from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from upath import UPath

from lance_dagster.engines.batch import BatchRunner
from lance_dagster.engines.engine import Completion, GenerationRequest, failed
from lance_dagster.engines.registry import ENGINES
from lance_dagster.engines.scripted_engine import ScriptedEngine
from lance_dagster.errors import GenerationError, SettingsError
from lance_dagster.settings import SamplingSettings
from lance_dagster.storage.tables import read_table, write_table
from lance_dagster_tests.construction.scripted import settings


def request(number: int, prompt: str = "Say the number", **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        ({"role": "user", "content": f"{prompt} {number}"},), SamplingSettings(**sampling), 1000 + number
    )


REQUESTS = [request(i) for i in range(25)]


def answer(request: GenerationRequest) -> str:
    return f"number {request.seed} «日本» 😀"


class Bench:
    """A runner with ten rows to a shard, its engine, and how often it was loaded."""

    def __init__(
        self,
        folder: Path,
        engine: Any = None,
        *,
        digest: str = "scripted",
        shard_rows: int = 10,
        max_failed_share: float = 0.0,
    ) -> None:
        self.engine = engine or ScriptedEngine(answer, digest)
        self.loads = 0
        self.lines: list[str] = []
        cache = UPath(folder / "completions")
        self.folder = folder / "completions" / digest / "review"
        self.runner = BatchRunner(
            self.load, digest, self.engine.identity, cache, shard_rows, self.lines.append, max_failed_share
        )

    def load(self) -> Any:
        self.loads += 1
        return self.engine

    def generate(self, requests: Sequence[GenerationRequest] = REQUESTS) -> list[str]:
        return [completion.text for completion in self.runner.generate(requests, "review")]

    def shards(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.glob("*")}


EXPECTED = [answer(request) for request in REQUESTS]


# Shards and resume


def test_completions_come_in_the_order_of_the_requests(tmp_path: Path) -> None:
    assert Bench(tmp_path).generate() == EXPECTED
    assert Bench(tmp_path).generate(REQUESTS[::-1]) == EXPECTED[::-1]


def test_every_shard_is_written_once_and_each_request_is_in_one_shard(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.generate()
    written = bench.shards()
    tables = [read_table(UPath(path)) for path in bench.folder.glob("*.parquet")]
    assert sorted(table.num_rows for table in tables) == [5, 10, 10]
    kept = [key for table in tables for key in table["request"].to_pylist()]
    assert len(set(kept)) == len(kept) == 25
    Bench(tmp_path).generate()
    assert bench.shards() == written


@pytest.mark.parametrize("answered", [20, 24])
def test_a_run_that_dies_in_its_third_shard_resumes_there(tmp_path: Path, answered: int) -> None:
    dying = Bench(tmp_path / "a", ScriptedEngine(answer, fail_after=answered))
    with pytest.raises(GenerationError, match=r"review, requests 20\.\.24 of 25: the scripted engine was told to fail"):
        dying.generate()
    assert len(dying.shards()) == 2
    resumed = Bench(tmp_path / "a")
    assert resumed.generate() == EXPECTED
    assert resumed.engine.requests == REQUESTS[20:]
    whole = Bench(tmp_path / "b")
    whole.generate()
    assert resumed.shards() == whole.shards()


def test_a_run_that_dies_in_its_first_shard_leaves_nothing(tmp_path: Path) -> None:
    dying = Bench(tmp_path, ScriptedEngine(answer, fail_after=9))
    with pytest.raises(GenerationError):
        dying.generate()
    assert dying.shards() == {}


def test_a_write_that_was_killed_is_not_taken_for_a_shard(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.folder.mkdir(parents=True)
    (bench.folder / ".0123.parquet.abc.tmp").write_bytes(b"PAR1 half")
    assert bench.generate() == EXPECTED


# The cache


def test_a_cached_stage_loads_no_model(tmp_path: Path) -> None:
    Bench(tmp_path).generate()
    again = Bench(tmp_path)
    assert again.generate() == EXPECTED
    assert again.loads == 0


def test_the_model_is_loaded_once_for_several_calls(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.generate(REQUESTS[:5])
    bench.generate(REQUESTS[5:])
    assert bench.loads == 1


def test_requests_that_are_left_out_added_or_moved_generate_only_what_is_new(tmp_path: Path) -> None:
    Bench(tmp_path).generate()
    changed = [*REQUESTS[3:20], request(99), REQUESTS[0]]
    later = Bench(tmp_path, shard_rows=7)
    assert later.generate(changed) == [answer(r) for r in changed]
    assert later.engine.requests == [request(99)]


def test_equal_requests_are_generated_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.generate([request(1), request(2), request(1)]) == [answer(request(n)) for n in (1, 2, 1)]
    assert bench.engine.requests == [request(1), request(2)]


@pytest.mark.parametrize(
    "other",
    [
        request(0, prompt="Say another number"),
        request(0, temperature=0.71),
        request(0, top_p=0.91),
        request(0, max_new_tokens=511),
        GenerationRequest(request(0).messages, request(0).sampling, 1),
        GenerationRequest(({"role": "system", "content": "Hi"}, *request(0).messages), request(0).sampling, 1000),
    ],
    ids=["prompt", "temperature", "top_p", "max_new_tokens", "seed", "system"],
)
def test_another_prompt_sampling_or_seed_is_generated_anew(tmp_path: Path, other: GenerationRequest) -> None:
    Bench(tmp_path).generate([request(0)])
    later = Bench(tmp_path)
    later.generate([other])
    assert later.engine.requests == [other]


def test_another_model_is_asked_anew(tmp_path: Path) -> None:
    Bench(tmp_path).generate()
    other = Bench(tmp_path, digest="other_model")
    other.generate()
    assert other.engine.requests == REQUESTS


class OtherEngine(ScriptedEngine):
    @property
    def identity(self) -> str:
        return "another engine"


def test_another_engine_is_asked_anew(tmp_path: Path) -> None:
    Bench(tmp_path).generate()
    other = Bench(tmp_path, OtherEngine(answer))
    other.generate()
    assert other.engine.requests == REQUESTS


# What goes wrong


class Careless:
    """An engine that loses or invents completions."""

    model_digest, identity = "scripted", "scripted"

    def __init__(self, difference: int) -> None:
        self._difference = difference

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        return [Completion("x", "stop", 1, 1)] * (len(requests) + self._difference)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_wrong_number_of_completions_is_an_error_and_nothing_is_kept(tmp_path: Path, difference: int) -> None:
    bench = Bench(tmp_path, Careless(difference))
    with pytest.raises(GenerationError, match=rf"requests 0\.\.9 of 25.*gave {10 + difference} completions for 10"):
        bench.generate()
    assert bench.shards() == {}


@pytest.mark.parametrize("engine", [ScriptedEngine(answer, "another model"), OtherEngine(answer)])
def test_an_engine_other_than_the_announced_one_is_refused(tmp_path: Path, engine: ScriptedEngine) -> None:
    runner = BatchRunner(lambda: engine, "scripted", "scripted", UPath(tmp_path), 10, lambda line: None)
    with pytest.raises(GenerationError, match="would be kept as those of 'scripted' with model scripted"):
        runner.generate(REQUESTS, "review")
    assert engine.requests == []


@pytest.mark.parametrize("damage", [b"", b"PAR1 nonsense PAR1"])
def test_a_damaged_shard_is_reported_and_generated_again(tmp_path: Path, damage: bytes) -> None:
    first = Bench(tmp_path)
    first.generate()
    whole = first.shards()
    damaged = sorted(first.folder.glob("*.parquet"))[0]
    damaged.write_bytes(damage)
    later = Bench(tmp_path)
    assert later.generate() == EXPECTED
    assert len(later.engine.requests) in (5, 10), "one shard of three"
    assert any("will be generated again" in line and damaged.name in line for line in later.lines)
    assert later.shards() == whole, "the damaged file was replaced"


def test_a_parquet_file_of_another_layout_is_reported_and_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    foreign = UPath(bench.folder / "foreign.parquet")
    write_table(foreign, pa.table({"text": ["x"]}))
    assert bench.generate() == EXPECTED
    assert any("foreign.parquet" in line for line in bench.lines)
    assert foreign.exists()


# Rows that fail


def refused(*numbers: int) -> Callable[[GenerationRequest], Completion | str]:
    """Answers all requests but those with these numbers."""
    return lambda r: failed("refused", "not today", 7, 3) if r.seed - 1000 in numbers else answer(r)


def test_a_failed_row_is_marked_and_the_others_are_answered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ScriptedEngine(refused(4, 22)), max_failed_share=0.1)
    completions = bench.runner.generate(REQUESTS, "review")
    assert completions[4] == Completion("", "error", 7, 0, "refused: not today", 3)
    assert [c.text for i, c in enumerate(completions) if i not in (4, 22)] == [
        text for i, text in enumerate(EXPECTED) if i not in (4, 22)
    ]
    assert bench.runner.usage.failed == 2


def test_failed_rows_are_not_kept_and_are_asked_again(tmp_path: Path) -> None:
    Bench(tmp_path, ScriptedEngine(refused(4, 22)), max_failed_share=0.1).generate()
    later = Bench(tmp_path)
    assert later.generate() == EXPECTED
    assert later.engine.requests == [REQUESTS[4], REQUESTS[22]]
    assert later.runner.usage.failed == 0


def test_too_many_failed_rows_stop_the_stage_and_name_the_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ScriptedEngine(refused(4, 7, 22)), max_failed_share=0.1)
    message = r"review: 3 of 25 requests failed, more than the share of 0\.1 .* request 4: refused: not today"
    with pytest.raises(GenerationError, match=message):
        bench.generate()
    assert sum(read_table(UPath(path)).num_rows for path in bench.folder.glob("*")) == 22, "what was answered is kept"


def test_the_stage_stops_at_the_shard_in_which_too_many_rows_failed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ScriptedEngine(refused(0, 1, 2)), max_failed_share=0.1)
    with pytest.raises(GenerationError, match="3 of 25 requests failed"):
        bench.generate()
    assert len(bench.engine.requests) == 10


def test_a_shard_of_nothing_but_failures_leaves_no_file(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ScriptedEngine(refused(*range(25))), max_failed_share=1.0)
    assert bench.generate() == [""] * 25
    assert bench.shards() == {}


# Accounting


def cut_every_fifth(request: GenerationRequest) -> Completion:
    return Completion("x", "length" if request.seed % 5 == 0 else "stop", 3, 2)


def test_usage_counts_what_was_asked_generated_and_cut_off(tmp_path: Path) -> None:
    Bench(tmp_path, ScriptedEngine(cut_every_fifth)).generate(REQUESTS[:10])
    bench = Bench(tmp_path, ScriptedEngine(cut_every_fifth))
    bench.generate()
    usage = bench.runner.usage
    assert (usage.requests, usage.cached_requests) == (25, 10)
    assert (usage.prompt_tokens, usage.completion_tokens) == (15 * 3, 15 * 2)
    assert usage.truncated == 5, "cached ones count too"
    assert usage.seconds > 0
    bench.generate(REQUESTS[:1])
    assert (usage.requests, usage.cached_requests, usage.truncated) == (26, 11, 6)
    metadata = bench.runner.metadata()
    assert metadata["generation/requests"] == 26
    assert metadata["generation/tokens_per_second"] == pytest.approx(30 / usage.seconds, abs=0.1)


def test_a_cached_stage_costs_nothing(tmp_path: Path) -> None:
    Bench(tmp_path).generate()
    again = Bench(tmp_path)
    again.generate()
    assert again.runner.metadata() == {
        "generation/requests": 25,
        "generation/cached_requests": 25,
        "generation/prompt_tokens": 0,
        "generation/completion_tokens": 0,
        "generation/truncated": 0,
        "generation/failed": 0,
        "generation/seconds": 0.0,
        "generation/wall_seconds": 0.0,
        "generation/gpu_seconds": 0.0,
        "generation/tokens_per_second": 0.0,
        "generation/cost": 0.0,
    }


def test_there_is_a_progress_line_per_shard_and_one_for_the_cache(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.generate()
    assert [line.partition(" (")[0] for line in bench.lines] == ["review: 10/25", "review: 20/25", "review: 25/25"]
    assert "tokens in" in bench.lines[0]
    later = Bench(tmp_path)
    later.generate([*REQUESTS, request(30)])
    assert later.lines[0] == "review: 25/26 from the cache"
    assert later.lines[1].startswith("review: 26/26 (")


def test_no_request_is_no_work(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.generate([]) == []
    assert (bench.loads, bench.lines, bench.runner.usage.requests) == (0, [], 0)


# The scripted engine


def test_a_scripted_text_is_a_completion_that_ended_by_itself(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda request: "two words")
    assert engine.generate([request(7)]) == [Completion("two words", "stop", 4, 2)]
    assert engine.requests == [request(7)]


def test_users_cannot_pick_the_scripted_engine() -> None:
    with pytest.raises(SettingsError, match=r"engine\.kind"):
        settings(engine={"kind": "scripted"})
    assert "scripted" not in ENGINES

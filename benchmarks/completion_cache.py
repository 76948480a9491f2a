"""A stage of 100,000 requests with the scripted engine: cached rows per CPU second, cost of a resume, memory.

Goals: the cache answers at least 20,000 rows/s, resuming a half-finished stage costs at most 1 % of it, and the process
stays under 1 GiB. The stage that the resume is compared with takes 1 ms per request, as a fast engine does.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable

from upath import UPath

from lance_dagster.engines.batch import BatchRunner
from lance_dagster.engines.engine import Completion, GenerationRequest
from lance_dagster.engines.scripted_engine import ScriptedEngine
from lance_dagster.settings import SamplingSettings

ROWS, SAMPLES, SECONDS_PER_ROW = 100_000, 4, 0.001
TEXT = "A generated answer of some sixty words, as instructions of a seed get. " * 5


def requests() -> list[GenerationRequest]:
    sampling, asked = SamplingSettings(), []
    for number in range(ROWS // SAMPLES):
        messages = ({"role": "user", "content": f"{number} {TEXT * 10}"},)
        asked += [GenerationRequest(messages, sampling, number * SAMPLES + k) for k in range(SAMPLES)]
    return asked


class Forgetful(ScriptedEngine):
    """Does not remember what it was asked, which would be the test's memory and not the stage's."""

    def generate(self, requests: list[GenerationRequest]) -> list[Completion]:  # type: ignore[override]
        return [Completion(f"{request.seed} {TEXT}", "stop", 700, 80) for request in requests]


def run(folder: str, asked: list[GenerationRequest]) -> float:
    """CPU seconds, which other work on the machine does not change; no step waits for anything but files."""
    load: Callable[[], ScriptedEngine] = lambda: Forgetful(lambda request: "")  # noqa: E731
    started = time.process_time()
    completions = BatchRunner(load, "scripted", "scripted", UPath(folder), 1024, lambda line: None).generate(
        asked, "answer"
    )
    assert len(completions) == len(asked) and completions[-1].text.startswith(str(asked[-1].seed))
    return time.process_time() - started


def main() -> None:
    asked = requests()
    with tempfile.TemporaryDirectory() as folder:
        half = run(folder, asked[: ROWS // 2])
        print(
            f"first half, {ROWS // 2:,} rows: {half:.1f} s besides the engine, {half / (ROWS // 2) * 1e6:.0f} us a row"
        )
        resumed = run(folder, asked)
        print(f"the rest, resumed: {resumed:.1f} s")
        cached = min(run(folder, asked) for _ in range(3))
        print(f"all from the cache: {cached:.2f} s")
        # What finding the finished half took, against a stage at the given speed.
        found = min(run(folder, asked[: ROWS // 2]) for _ in range(3))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    result = {
        "cached_rows_per_second": round(ROWS / cached),
        "resume_share_of_stage": round(found / (ROWS * SECONDS_PER_ROW), 4),
        "peak_memory_gib": round(memory, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

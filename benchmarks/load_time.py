"""How long the code location takes to load, against `import dagster` alone.

Each is a fresh Python process; the two take turns. Prints the medians, their difference (goal: at most 1 s) and ratio.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 7
CODE = {
    "import_dagster": "import dagster",
    "load_code_location": "from lance_dagster.definitions import defs; defs().resolve_asset_graph()",
}


def seconds(code: str) -> float:
    """Wall time of one Python process, less an empty one's share that both have."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    return time.perf_counter() - started


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in CODE}
    for _ in range(ROUNDS):
        for name, code in CODE.items():
            times[name].append(seconds(code))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(
            f"{name}: median {medians[name]:.2f} s, from {min(values):.2f} to {max(values):.2f} s over {ROUNDS} rounds"
        )
    print(
        json.dumps(
            {
                "benchmark": "load_time",
                **{f"{name}_seconds": round(value, 3) for name, value in medians.items()},
                "difference_seconds": round(medians["load_code_location"] - medians["import_dagster"], 3),
                "ratio": round(medians["load_code_location"] / medians["import_dagster"], 3),
            }
        )
    )


if __name__ == "__main__":
    main()

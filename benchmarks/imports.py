"""What one iteration imports in a process of its own: with Python's garbage collector, and as the project does it.

Each is a fresh Python process; the two take turns. Prints medians of CPU seconds, which do not depend on what else the
machine does, and their ratio.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 7
LIBRARIES = """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.models.qwen2 import modeling_qwen2
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
    import lm_eval
    from lm_eval.models.huggingface import HFLM
"""
CODE = {
    "collecting": "if True:" + LIBRARIES,
    "heavy_imports": "from lance_dagster.imports import heavy_imports\nwith heavy_imports():" + LIBRARIES,
}
SECONDS = "\nimport resource; used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime)"


def seconds(code: str) -> float:
    """CPU time of one Python process."""
    command = [sys.executable, "-c", code + SECONDS]
    done = subprocess.run(command, check=True, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    return float(done.stdout.split()[-1])


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
    ratio = round(medians["heavy_imports"] / medians["collecting"], 3)
    plain = {f"{name}_cpu_seconds": round(value, 3) for name, value in medians.items()}
    print(json.dumps({"benchmark": "imports", **plain, "ratio": ratio}))


if __name__ == "__main__":
    main()

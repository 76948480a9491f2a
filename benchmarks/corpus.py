"""English rows for the other benchmarks, from the real text in ../shared/data: how many there are, and how long.

Rows are put together of sentences of GSM8K questions, answers and graded model solutions and of the Self-Instruct seed
tasks, drawn at random until a row has enough words, 66 on average; one row in ten is an earlier one with up to seven
words changed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
WORDS, SPREAD, PLANTED, CHANGED, RECENT = 58, 15, 0.1, 7, 100_000


def sentences() -> list[str]:
    """Distinct sentences of at least four words, in a fixed order."""
    if not FOLDER.is_dir():
        print(json.dumps({"skipped": f"there is no {FOLDER.resolve()}, where the real text lies"}))
        raise SystemExit(0)
    found: set[str] = set()
    for name in ("gsm8k_train", "gsm8k_test", "gsm8k_example_model_solutions", "self_instruct_seed_tasks"):
        for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            for text in _texts(json.loads(line)):
                found.update(part for part in re.split(r"(?<=[.?!])\s+|\n", text) if len(part.split()) >= 4)
    return sorted(found)


def rows(count: int, seed: int = 0) -> Iterator[str]:
    """Rows of about 66 words; the same seed gives the same rows."""
    rng = random.Random(seed)
    source = sentences()
    recent: list[str] = []
    for _ in range(count):
        if recent and rng.random() < PLANTED:
            words = rng.choice(recent).split()
            for _ in range(rng.randint(1, CHANGED)):
                words[rng.randrange(len(words))] = rng.choice(source).split()[0]
        else:
            words, target = [], rng.gauss(WORDS, SPREAD)
            while not words or len(words) < target:
                words += rng.choice(source).split()
        text = " ".join(words)
        if len(recent) < RECENT:
            recent.append(text)
        else:
            recent[rng.randrange(RECENT)] = text
        yield text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def main() -> None:
    lengths = sorted(len(text.split()) for text in rows(10_000))
    print(
        json.dumps(
            {
                "benchmark": "corpus",
                "sentences": len(sentences()),
                "rows": len(lengths),
                "words_mean": round(sum(lengths) / len(lengths), 1),
                "words_5_percent": lengths[len(lengths) // 20],
                "words_95_percent": lengths[-len(lengths) // 20],
            }
        )
    )


if __name__ == "__main__":
    main()

"""Seed files written and loaded by tests."""

import json
from pathlib import Path
from typing import Any

from lance_dagster.construction.seeds.load import SeedLoad, load_seed_instructions, load_seed_reviews
from lance_dagster.settings import SeedSettings

SETTINGS = SeedSettings(instructions="seed.jsonl", reviews="reviews.jsonl")
GOOD = {"instruction": "Name a colour.", "response": "Blue."}
REVIEW = {**GOOD, "rationale": "It is a colour.", "score": 9}
Row = dict[str, Any]


def write_lines(path: Path, *lines: object) -> None:
    """A JSONL file; bytes are written as they are, everything else as JSON."""
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))


def load(folder: Path, *lines: object, settings: SeedSettings = SETTINGS) -> SeedLoad:
    write_lines(folder / "seed.jsonl", *lines)
    return load_seed_instructions("seed.jsonl", settings, folder)


def load_reviews(folder: Path, *lines: object) -> SeedLoad:
    write_lines(folder / "reviews.jsonl", *lines)
    return load_seed_reviews("reviews.jsonl", SETTINGS, folder)


def pairs(loaded: SeedLoad) -> list[tuple[str, str]]:
    return list(zip(loaded.rows["instruction"].to_pylist(), loaded.rows["response"].to_pylist(), strict=True))


def only_quarantined(loaded: SeedLoad) -> Row:
    (row,) = loaded.quarantine.to_pylist()
    return dict(row)

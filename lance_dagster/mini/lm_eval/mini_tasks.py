"""Functions of the lm-eval tasks beside this file: their documents and their metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def documents(file: str, **_: Any) -> dict[str, Any]:
    """The documents of one evaluation set, from the JSONL file of this name beside this one."""
    import datasets

    path = Path(__file__).with_name(f"{file}.jsonl")
    rows = datasets.Dataset.from_json(str(path)) if path.exists() else None
    if rows is None:
        raise FileNotFoundError(f"{path} is missing; `lance-dagster mini data` writes it")
    return {"test": rows}


def exact_match(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 where the response, without outer white space, is one of the right answers."""
    response = results[0].strip()
    if document["answers"] is not None:
        return {"exact_match": float(response in document["answers"])}
    from lance_dagster.mini.world import World, world_named

    worlds: list[World] = [world_named("repair"), world_named("discovery")]
    return {"exact_match": float(any(world.is_right(document["instruction"], response) for world in worlds))}

"""Methods by their name in the settings."""

from __future__ import annotations

from lance_dagster.methods.lance import Lance
from lance_dagster.methods.method import Method
from lance_dagster.methods.replay import Replay

METHODS: dict[str, type[Method]] = {"lance": Lance, "replay": Replay}


def method_named(name: str) -> Method:
    """The method that the settings name; the settings have checked that it exists."""
    return METHODS[name]()

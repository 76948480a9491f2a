"""Importing the heavy libraries in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_no_model_yet = True


@contextmanager
def heavy_imports() -> Iterator[None]:
    """A block in which torch, transformers, TRL or lm-eval are imported, without the garbage collector.

    Their modules are a million objects that live as long as the process. The collector looks through them again and
    again while they are made and finds nothing, which takes a quarter of the time (benchmarks/imports.py). As long as
    there is no model they are set aside afterwards, so that it never looks at them again: each trainer collects. Not
    later, because what a trainer leaves in a reference cycle, GPU memory included, would be set aside with them.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _no_model_yet:
            gc.freeze()
        if collecting:
            gc.enable()


def models_follow() -> None:
    """Say that from now on there are models in this process."""
    global _no_model_yet
    _no_model_yet = False

"""Importing the heavy libraries in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """A block in which torch, transformers, TRL or lm-eval are imported, without the garbage collector.

    Their modules are a million objects that live as long as the process. The collector looks through them again and
    again while they are made and finds nothing, which takes a quarter of the time (benchmarks/imports.py). They are not
    frozen afterwards: what a trainer left in a reference cycle would be frozen with them, GPU memory included.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()

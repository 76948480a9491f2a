"""Real text that lies next to the repository on machines that have it."""

from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """A file of the folder `shared/data` next to the repository; the test is skipped where there is none."""
    path = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / name
    if not path.is_file():
        pytest.skip(f"no shared/data/{name} next to the repository")
    return path

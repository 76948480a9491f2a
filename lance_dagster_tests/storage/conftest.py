from __future__ import annotations

from pathlib import Path

import pytest
from upath import UPath


@pytest.fixture(params=["local", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    """An empty folder: as a path, as a file URL, and on a file system that is not local."""
    urls = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{tmp_path.name}"}
    return UPath(urls[request.param])

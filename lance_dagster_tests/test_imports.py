"""The garbage collector while heavy libraries are imported, and afterwards."""

from __future__ import annotations

import subprocess
import sys

from lance_dagster_tests.tiny import REPOSITORY

CODE = """
import gc, sys
from pathlib import Path
from lance_dagster.imports import heavy_imports
from lance_dagster.settings import ModelSettings
from lance_dagster.storage.models import load_model
with heavy_imports():
    assert not gc.isenabled()
    import transformers
assert gc.isenabled() and gc.get_freeze_count() > 10_000
load_model(Path(sys.argv[1]), ModelSettings(path="x", device="cpu"))

class Trainer:
    pass

trainer = Trainer()
trainer.callback = trainer  # a reference cycle
with heavy_imports():
    import json
del trainer
gc.collect()
gc.unfreeze()  # brings back what was set aside
assert not [thing for thing in gc.get_objects() if type(thing) is Trainer], "a trainer was set aside"
gc.disable()
with heavy_imports():
    pass
assert not gc.isenabled(), "who switched it off finds it off"
"""


def test_modules_are_set_aside_and_models_are_not() -> None:
    base = str(REPOSITORY / "lance_dagster/mini/base")
    done = subprocess.run([sys.executable, "-c", CODE, base], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

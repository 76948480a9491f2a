"""Where a stage is trained: in this process, or in processes of its own that `accelerate` starts, one per GPU.

The latter run this module: ``python -m lance_dagster.training.launch FOLDER``, where FOLDER holds ``stage.json`` and
``rows.parquet``. The first of them leaves ``result.json``, or ``refused.json`` with the message of an error of this
project.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from upath import UPath

from lance_dagster.errors import LanceError, SettingsError, TrainingError
from lance_dagster.settings import DPOSettings, ModelSettings, SFTSettings
from lance_dagster.storage.checkpoints import staging_folder
from lance_dagster.storage.tables import read_table, write_table
from lance_dagster.training.stage import Log, TrainingResult

_PROGRESS = "lance: "  # begins the lines of the processes that are for the log of the run
_LAST_LINES = 15  # of the output of processes that failed, shown in the error


@dataclass(frozen=True)
class Stage:
    """What to train: the checkpoint in ``start``, with these settings, into ``out``. ``steps`` is for SFT only."""

    kind: Literal["sft", "dpo"]
    start: Path
    out: Path
    settings: SFTSettings | DPOSettings
    model: ModelSettings
    seed: int
    steps: int | None = None


def train(stage: Stage, rows: pa.Table, log: Log, accelerate_config: str | None = None) -> TrainingResult:
    """Train ``stage`` on ``rows`` (schema SFT_SET or PREFERENCE_SET); errors as ``train_sft`` and ``train_dpo``."""
    if accelerate_config is None:
        return _train_here(stage, rows, log)
    if not Path(accelerate_config).is_file():
        raise SettingsError(
            f"training.accelerate_config: there is no file {accelerate_config}; `accelerate config` asks"
        )
    with staging_folder() as folder:
        write_table(UPath(folder / "rows.parquet"), rows)
        (folder / "stage.json").write_text(json.dumps(_plain(stage)))
        last = _launch(accelerate_config, folder, log)
        if (folder / "refused.json").exists():
            raise TrainingError(json.loads((folder / "refused.json").read_text()))
        if not (folder / "result.json").exists():
            raise TrainingError(
                f"{stage.kind.upper()}: the processes that `accelerate launch` started with {accelerate_config} ended "
                "without a result. Their last lines:\n" + "\n".join(last)
            )
        return TrainingResult(**json.loads((folder / "result.json").read_text()))


def _train_here(stage: Stage, rows: pa.Table, log: Log) -> TrainingResult:
    from lance_dagster.training.dpo import train_dpo
    from lance_dagster.training.sft import train_sft

    start, out, settings, model, seed = stage.start, stage.out, stage.settings, stage.model, stage.seed
    if isinstance(settings, DPOSettings):
        return train_dpo(start, rows, out, settings, model, seed, log)
    assert isinstance(settings, SFTSettings)
    return train_sft(start, rows, out, settings, model, seed, log, stage.steps)


def _launch(config: str, folder: Path, log: Log) -> list[str]:
    """Run the processes, pass their lines on, and return the last ones. An interrupted run takes them along."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    process = subprocess.Popen(
        [*launcher, "-m", "lance_dagster.training.launch", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        for line in process.stdout:
            last.append(line.rstrip())
            if line.startswith(_PROGRESS):
                log(line.rstrip().removeprefix(_PROGRESS))
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()  # accelerate ends its workers
            process.wait()
    return list(last)


def _plain(stage: Stage) -> dict[str, object]:
    sections = {"settings": stage.settings.model_dump(mode="json"), "model": stage.model.model_dump(mode="json")}
    return {**stage.__dict__, **sections, "start": str(stage.start), "out": str(stage.out)}


def main(folder: Path) -> None:
    """One of the processes of a stage."""
    values = json.loads((folder / "stage.json").read_text())
    section = DPOSettings if values["kind"] == "dpo" else SFTSettings
    stage = Stage(
        **{
            **values,
            "start": Path(values["start"]),
            "out": Path(values["out"]),
            "settings": section.model_validate(values["settings"]),
            "model": ModelSettings.model_validate(values["model"]),
        }
    )
    first = os.environ.get("RANK", "0") == "0"

    def tell(line: str) -> None:
        if first:
            sys.stdout.write(f"{_PROGRESS}{line}\n")
            sys.stdout.flush()

    try:
        result = _train_here(stage, read_table(UPath(folder / "rows.parquet")), tell)
    except LanceError as error:
        if first:
            (folder / "refused.json").write_text(json.dumps(str(error)))
        sys.exit(1)
    if first:
        (folder / "result.json").write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What became of each candidate of an iteration, as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_dagster.construction.filters.words import Ints
from lance_dagster.errors import ArtifactError

Stage = Literal["generated", "text", "duplicate", "contamination", "rouge_l", "reward", "acceptance"]
STAGES: tuple[Stage, ...] = ("generated", "text", "duplicate", "contamination", "rouge_l", "reward", "acceptance")
Mask = npt.NDArray[np.bool_]

_ALIVE = -1


@dataclass
class Fates:
    """``stage`` is the last step that a row reached, ``drop_reason`` why it went no further."""

    stages: npt.NDArray[np.int8]
    reasons: npt.NDArray[np.int16]
    names: list[str] = field(default_factory=list)  # of the reasons, by their numbers

    @classmethod
    def open(cls, rows: int) -> Self:
        return cls(np.zeros(rows, dtype=np.int8), np.full(rows, _ALIVE, dtype=np.int16))

    @classmethod
    def of(cls, stages: pa.ChunkedArray, drop_reasons: pa.ChunkedArray) -> Self:
        """From the columns of a ledger. ArtifactError for one of a version that had other stages."""
        unknown = set(stages.unique().to_pylist()) - set(STAGES)
        if unknown:
            raise ArtifactError(
                f"the ledger has rows at the stage {', '.join(sorted(unknown))}, which this version does not have: "
                "re-materialise candidate_ledger of this iteration"
            )
        fates = cls.open(len(stages))
        fates.stages[:] = [STAGES.index(stage) for stage in stages.to_pylist()]
        reasons = drop_reasons.to_pylist()
        fates.reasons[:] = [_ALIVE if reason is None else fates._number(reason) for reason in reasons]
        return fates

    def __len__(self) -> int:
        return len(self.stages)

    @property
    def alive(self) -> Mask:
        alive: Mask = self.reasons == _ALIVE
        return alive

    def reached(self, stage: Stage) -> Mask:
        """Rows that came at least as far as a stage."""
        far: Mask = self.stages >= STAGES.index(stage)
        return far

    def reach(self, stage: Stage, rows: Ints | Mask) -> None:
        self.stages[rows] = STAGES.index(stage)

    def drop(self, stage: Stage, rows: Ints | Mask, reason: str) -> None:
        """Rows that are dropped at a stage, which they reach thereby."""
        self.reach(stage, rows)
        self.reasons[rows] = self._number(reason)

    def revive(self, stage: Stage, rows: Mask) -> None:
        """Rows are back at a stage, as if nothing had dropped them since."""
        self.reach(stage, rows)
        self.reasons[rows] = _ALIVE

    def copy(self) -> Fates:
        return Fates(self.stages.copy(), self.reasons.copy(), list(self.names))

    def counts(self, kinds: Sequence[str]) -> Counter[tuple[str, str]]:
        """How many rows of each kind have which fate: a drop reason, or ``kept``."""
        fates = [*self.names, "kept"]  # the number of those that are alive is -1: the last
        return Counter(zip(kinds, (fates[number] for number in self.reasons.tolist()), strict=True))

    def stage_column(self) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(self.stages), pa.array(STAGES)).cast(pa.string())

    def reason_column(self) -> pa.Array:
        numbers = pa.array(self.reasons, mask=self.alive)
        return pa.DictionaryArray.from_arrays(numbers, pa.array(self.names, type=pa.string())).cast(pa.string())

    def _number(self, reason: str) -> int:
        if reason not in self.names:
            self.names.append(reason)
        return self.names.index(reason)

"""What a gate says about one artifact: passed or not, in one sentence, with the figures behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdict:
    """``explanation`` is what a user reads; ``figures`` have stable names, so that they plot over iterations."""

    passed: bool
    explanation: str
    figures: Mapping[str, float | int] = field(default_factory=dict)

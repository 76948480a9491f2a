"""The controls of a study: what an experiment gains without one of its parts. One YAML file each in ``controls/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lance_dagster.errors import SettingsError

# The experiment as it is; controls are held against it, and ``training.steps_of: lance`` in their files means it.
WHOLE = "lance"
FOLDER = Path(__file__).parent / "controls"


@dataclass(frozen=True)
class Variant:
    """A name, what is different in a few words, and the settings that make it so."""

    name: str
    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_whole(self) -> bool:
        """Whether it asks how many steps the whole experiment took, which must then have run."""
        return bool(self.settings.get("training", {}).get("steps_of") == WHOLE)


def variants(folder: Path = FOLDER) -> list[Variant]:
    """The whole experiment first, then its controls by name; SettingsError for a file that is not a control."""
    found = [Variant(WHOLE, "the experiment as it is")]
    for file in sorted(folder.glob("*.yaml")):
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            found.append(Variant(file.stem, str(content["what"]), dict(content["settings"])))
        except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise SettingsError(f"{file}: a control needs `what` (text) and `settings` (a mapping): {error}") from error
    return found


def variant_named(name: str, folder: Path = FOLDER) -> Variant:
    """One of ``variants``; SettingsError if there is none of this name."""
    known = {variant.name: variant for variant in variants(folder)}
    if name not in known:
        raise SettingsError(f"there is no control {name!r}; there are {', '.join(known)}")
    return known[name]

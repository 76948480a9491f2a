"""Versioned prompt sets: YAML files with one Jinja template per kind of prompt.

A set holds the system prompt and four kinds, named after section 3.3 of the paper:

* ``answer``: the bare instruction, as in training and in evaluation;
* ``review``: asks for a rationale and a score of an (instruction, response) pair, and ``target``, the text that
  a reviewer is trained to write;
* ``new_instruction``: asks for a new instruction from a low-scored pair (the low branch of Algorithm 1);
* ``flawed_response``: asks for a deliberately flawed response to a high-scored one (the high branch).

``answer_marker`` is the text behind which a model's answer starts, if the template asks for one (see parsing.py).
Only templates are parsed: Jinja syntax in the text that fills them stays as it is (what does not: neutralise.py). The
system prompt is no template.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import jinja2
import yaml
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lance_dagster.errors import SettingsError
from lance_dagster.prompts.neutralise import without_score, without_tags
from lance_dagster.prompts.parsing import parse_score
from lance_dagster.settings import explain

PromptKind = Literal["answer", "review", "new_instruction", "flawed_response"]
PROMPT_KINDS: tuple[PromptKind, ...] = ("answer", "review", "new_instruction", "flawed_response")
Message = dict[str, str]

# Prompt sets are passed around between people, so their templates get no way to Python objects.
_JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Template(_Part):
    user: str
    target: str | None = None
    answer_marker: str | None = Field(None, pattern=r"[^\s:]", description="null: the whole text is the answer")


class _Change(_Part):
    version: int
    date: object
    what: str


class _PromptFile(_Part):
    name: str
    version: int
    changes: tuple[_Change, ...]
    system: str | None
    answer: _Template
    review: _Template
    new_instruction: _Template
    flawed_response: _Template


@dataclass(frozen=True)
class PromptSet:
    """One loaded prompt set. ``identity`` ('mini_v1') is what rows carry as ``prompt_template``."""

    content: _PromptFile

    @property
    def identity(self) -> str:
        return f"{self.content.name}_v{self.content.version}"

    def template(self, kind: PromptKind) -> _Template:
        template: _Template = getattr(self.content, kind)
        return template

    def digest(self, *kinds: PromptKind) -> str:
        """Hash over the wording of some kinds and the system prompt: it belongs in the code version."""
        parts = {kind: self.template(kind).model_dump() for kind in kinds}
        text = json.dumps({"system": self.content.system, **parts}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def messages(self, kind: PromptKind, **fields: str) -> list[Message]:
        """The chat messages of one prompt. Fields lose the template's own tags, and in a review statements of a score.

        Raises jinja2.UndefinedError for a field that the template needs and ``fields`` lacks.
        """
        template = self.template(kind).user
        fields = {name: without_tags(text, template) for name, text in fields.items()}
        if kind == "review":
            fields = {name: without_score(text) for name, text in fields.items()}
        user = _compiled(template).render(**fields)
        system = [{"role": "system", "content": self.content.system}] if self.content.system else []
        return [*system, {"role": "user", "content": user}]

    def review_target(self, rationale: str, score: float) -> str:
        """The text a reviewer should write for a rationale and a score in 0..10."""
        target = self.content.review.target
        assert target is not None  # load_prompt_set refuses a set without it
        return _compiled(target).render(rationale=rationale, score=f"{score:g}")


def load_prompt_set(name: str) -> PromptSet:
    """A shipped prompt set by identity ('lance_v1', 'mini_v1') or the path of a YAML file of your own.

    Raises SettingsError that names the file and what is wrong with it.
    """
    shipped = _shipped()
    path = shipped.get(name, Path(name))
    if not path.is_file():
        known = ", ".join(shipped)
        raise SettingsError(
            f"prompts.set: no prompt set {name!r}; shipped are {known}, or give the path of a YAML file"
        )
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"prompts.set: {path} is not a readable UTF-8 file: {error}") from error
    return _parsed(path, source)


def _shipped() -> dict[str, Path]:
    folder = Path(str(files("lance_dagster.prompts") / "sets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@lru_cache  # by content, so that an edited file is read anew
def _parsed(path: Path, source: str) -> PromptSet:
    try:
        content = _PromptFile.model_validate(yaml.safe_load(source))
    except yaml.YAMLError as error:
        raise SettingsError(f"prompts.set: {path} is not YAML: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"prompts.set: {path} is not a valid prompt set: {explain(error)}") from error
    if content.review.target is None:
        raise SettingsError(f"prompts.set: {path} lacks review.target, the text that a reviewer is trained to write")
    prompts = PromptSet(content)
    for kind in PROMPT_KINDS:
        known = {"instruction"} if kind == "answer" else {"instruction", "response"}
        _check_template(path, f"{kind}.user", prompts.template(kind).user, known)
    _check_template(path, "review.target", content.review.target, {"rationale", "score"})
    target = prompts.review_target("A rationale.", 7.5)
    if parse_score(target) != 7.5:
        raise SettingsError(
            f"prompts.set: {path}: no score can be read back from review.target, so that every review by a model "
            f"trained on it would be lost. End it with 'score: {{{{ score }}}}'; it renders as {target!r}"
        )
    return prompts


def _check_template(path: Path, name: str, source: str, known: set[str]) -> None:
    """SettingsError if a template does not parse or uses a field that it will not be given."""
    try:
        unknown = meta.find_undeclared_variables(_JINJA.parse(source)) - known
    except jinja2.TemplateError as error:
        raise SettingsError(f"prompts.set: {path}: the template {name} does not parse: {error}") from error
    if unknown:
        raise SettingsError(
            f"prompts.set: {path}: the template {name} uses {', '.join(sorted(unknown))}; "
            f"it is given {', '.join(sorted(known))}"
        )


@lru_cache
def _compiled(source: str) -> jinja2.Template:
    return _JINJA.from_string(source)

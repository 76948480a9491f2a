"""What a row of a public data set says, in the project's words: instruction, response, rationale, score.

A layout is recognised by the fields that a row has; a null counts as absent, since Parquet gives every row every
column. The first that fits wins:

====================  ==========================================================================
instruction_response  ``instruction``, ``response``: the project's own
alpaca                ``instruction``, ``output``
self_instruct         ``instruction``, ``instances``: [{``input``, ``output``}], the first is used
sharegpt              ``conversations``: [{``from``: human, user, system, gpt, assistant; ``value``}]
messages              ``messages``: [{``role``: user, system, assistant; ``content``}]
prompt_response       ``prompt``, ``response``
question_answer       ``question``, ``answer``
====================  ==========================================================================

Where an ``instruction`` comes with an ``input`` (or ``context``) that is not empty, it is appended after a blank line.
Of a conversation the first user turn that an assistant turn follows is used; ``from``/``value`` and
``role``/``content`` are understood in both conversation layouts. Reviews are ``instruction_response`` or
``question_answer`` rows with ``rationale`` and ``score``. Texts are stripped of the white space around them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from lance_dagster.construction.seeds.quarantine import BAD_SCORE, MISSING_FIELD, NOT_AN_OBJECT, Fault

Row = Mapping[str, object]

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Candidate:
    """What one row says, stripped but not yet checked. ``rationale`` and ``score`` are set for reviews."""

    layout: str
    instruction: str
    response: str
    rationale: str | None = None
    score: float | None = None
    first_exchange_only: bool = False  # the row holds further turns or instances, which are left out
    system_message_left_out: bool = False

    def texts(self) -> dict[str, str]:
        """Field name to text, of the texts that this row has."""
        texts = {"instruction": self.instruction, "response": self.response}
        return texts if self.rationale is None else {**texts, "rationale": self.rationale}


def read_instruction(value: object) -> Candidate | Fault:
    """The (instruction, response) pair of a parsed row."""
    return _read_as(value, _INSTRUCTION_LAYOUTS)


def read_review(value: object) -> Candidate | Fault:
    """The review of a parsed row: an (instruction, response) pair, its rationale and its score."""
    pair = _read_as(value, _REVIEW_LAYOUTS)
    if isinstance(pair, Fault) or not isinstance(value, Mapping):
        return pair
    rationale = _text(value, "rationale")
    if isinstance(rationale, Fault):
        return rationale
    score = _score(value["score"])
    return score if isinstance(score, Fault) else replace(pair, rationale=rationale, score=score)


@dataclass(frozen=True)
class _Layout:
    name: str
    fields: tuple[str, ...]  # those that a row must have to be of this layout
    read: Callable[[_Layout, Row], Candidate | Fault]


def _read_as(value: object, layouts: tuple[_Layout, ...]) -> Candidate | Fault:
    if not isinstance(value, Mapping):
        return Fault(NOT_AN_OBJECT, f"the row is a {type(value).__name__}, not an object with named fields")
    present = {name for name, field in value.items() if field is not None}
    for layout in layouts:
        if present.issuperset(layout.fields):
            return layout.read(layout, value)
    needed = "; ".join(", ".join(layout.fields) for layout in layouts)
    return Fault(MISSING_FIELD, f"the row has the fields {', '.join(sorted(present)) or '(none)'}; needed: {needed}")


def _read_pair(layout: _Layout, row: Row) -> Candidate | Fault:
    asked, answered = layout.fields[:2]
    instruction = _instruction_with_input(row, row) if asked == "instruction" else _text(row, asked)
    return _candidate(layout, instruction, _text(row, answered), system_message_left_out=bool(row.get("system")))


def _read_first_instance(layout: _Layout, row: Row) -> Candidate | Fault:
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], Mapping):
        return Fault(MISSING_FIELD, "instances is not a list that starts with an object")
    instruction = _instruction_with_input(row, instances[0])
    return _candidate(layout, instruction, _text(instances[0], "output"), first_exchange_only=len(instances) > 1)


def _read_conversation(layout: _Layout, row: Row) -> Candidate | Fault:
    (field,) = layout.fields
    turns = row[field]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        return Fault(MISSING_FIELD, f"{field} is not a list of objects")
    speakers = [str(turn.get("from") or turn.get("role")) for turn in turns]
    roles = [_ROLES.get(speaker.lower()) for speaker in speakers]
    has_system = roles[:1] == ["system"]
    for index in range(len(turns) - 1):
        if roles[index : index + 2] == ["user", "assistant"]:
            break
    else:
        return Fault(MISSING_FIELD, f"{field} has no user turn that an assistant turn follows: {speakers[:8]}")
    return _candidate(
        layout,
        _turn_text(turns[index]),
        _turn_text(turns[index + 1]),
        first_exchange_only=len(turns) - has_system > 2,
        system_message_left_out=has_system or bool(row.get("system")),
    )


def _candidate(
    layout: _Layout,
    instruction: str | Fault,
    response: str | Fault,
    first_exchange_only: bool = False,
    system_message_left_out: bool = False,
) -> Candidate | Fault:
    if isinstance(instruction, Fault):
        return instruction
    if isinstance(response, Fault):
        return response
    return Candidate(
        layout.name,
        instruction,
        response,
        first_exchange_only=first_exchange_only,
        system_message_left_out=system_message_left_out,
    )


def _text(row: Row, name: str) -> str | Fault:
    value = row.get(name)
    if isinstance(value, str):
        return value.strip()
    return Fault(MISSING_FIELD, f"{name} is {'missing' if value is None else f'a {type(value).__name__}, not text'}")


def _turn_text(turn: Row) -> str | Fault:
    return _text(turn, "content" if turn.get("value") is None else "value")


def _instruction_with_input(row: Row, inputs: Row) -> str | Fault:
    given = [name for name in ("input", "context") if inputs.get(name) is not None]
    parts = [_text(row, "instruction"), *(_text(inputs, name) for name in given)]
    for part in parts:
        if isinstance(part, Fault):
            return part
    return "\n\n".join(str(part) for part in parts if part)


def _score(value: object) -> float | Fault:
    try:
        number = float(value) if isinstance(value, int | float | str | Decimal) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not 0.0 <= number <= 10.0:  # not a number is in no range
        return Fault(BAD_SCORE, f"score is {value!r:.80}, not a finite number in 0..10")
    return number


_INSTRUCTION_LAYOUTS = (
    _Layout("instruction_response", ("instruction", "response"), _read_pair),
    _Layout("alpaca", ("instruction", "output"), _read_pair),
    _Layout("self_instruct", ("instruction", "instances"), _read_first_instance),
    _Layout("sharegpt", ("conversations",), _read_conversation),
    _Layout("messages", ("messages",), _read_conversation),
    _Layout("prompt_response", ("prompt", "response"), _read_pair),
    _Layout("question_answer", ("question", "answer"), _read_pair),
)
_REVIEW_LAYOUTS = (
    _Layout("instruction_response", ("instruction", "response", "rationale", "score"), _read_pair),
    _Layout("question_answer", ("question", "answer", "rationale", "score"), _read_pair),
)

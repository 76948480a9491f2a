"""From plain values to settings, with errors that name setting, value and range."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from lance_dagster.errors import SettingsError
from lance_dagster.settings.evolution import EvolutionSettings


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings with ``changes`` in them: sections are merged name by name, anything else is replaced."""
    out = dict(settings)
    for name, value in changes.items():
        inner = out.get(name)
        out[name] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return out


def parse_settings(values: dict[str, Any]) -> EvolutionSettings:
    """Validate plain values. Raises SettingsError with one line per wrong setting: name, value, what is allowed."""
    try:
        return EvolutionSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(explain(error, EvolutionSettings)) from error


def explain(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """One line per wrong setting: its dotted name, the value, and with ``model`` the allowed range and an example."""
    schema = settings_schema(model) if model else None
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "settings"
        value = "" if item["type"] == "missing" else f" (got {item['input']!r})"
        allowed = f"; allowed: {_allowed_at(schema, item['loc'])}" if schema else ""
        lines.append(f"{name}: {item['msg'].removeprefix('Value error, ')}{value}{allowed}")
    return "wrong settings:\n  " + "\n  ".join(lines)


def _allowed_at(schema: Mapping[str, Any], path: tuple[int | str, ...]) -> str:
    """What the setting at ``path`` may be, or the section that it was looked for in, and an example."""
    for part in path:
        schema = schema.get("properties", {}).get(part, schema)
    example = next((x for x in [schema.get("default"), *schema.get("examples", [])] if x is not None), None)
    plain = example is None or schema.keys() & {"properties", "enum", "const"} or schema.get("type") == "boolean"
    return allowed_values(schema) + ("" if plain else f", such as {json.dumps(example)}")


@cache
def settings_schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of a section in which each inner section stands in its place, with the defaults that hold there."""
    root = model.model_json_schema()

    def placed(schema: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in schema:
            schema = {**root["$defs"][schema["$ref"].removeprefix("#/$defs/")], **schema}
        if "anyOf" in schema:  # a section that may be unset
            return {**schema, "anyOf": [placed(each) for each in schema["anyOf"]]}
        if "properties" not in schema:
            return schema
        defaults = schema.get("default", {})
        inner = {
            name: placed({**each, "default": defaults[name]} if name in defaults else each)
            for name, each in schema["properties"].items()
        }
        return {**schema, "properties": inner}

    return placed(root)


def allowed_values(schema: Mapping[str, Any]) -> str:
    """What a JSON schema of ``settings_schema`` allows, in words: 'whole number, 1 to 64'."""
    if "properties" in schema:
        return "a section with " + ", ".join(schema["properties"])
    if "anyOf" in schema:  # a setting that may be unset
        return f"{allowed_values(schema['anyOf'][0])}, or null"
    if "const" in schema or "enum" in schema:
        *others, last = schema.get("enum", [schema.get("const")])
        return f"{', '.join(others)} or {last}" if others else str(last)
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}, each a {allowed_values(schema['prefixItems'][0])}"
    if schema["type"] == "array":
        return f"list of {allowed_values(schema['items'])}" + (", not empty" if schema.get("minItems") else "")
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return words[schema["type"]] + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    """', 1 to 64', ', 1 or more', ', above 0, at most 1' or nothing."""
    names = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    least, most, above, below = (f"{schema[name]:,}".removesuffix(".0") if name in schema else "" for name in names)
    if least and most:
        return f", {least} to {most}"
    parts = [f"{least} or more" if least else "", f"above {above}" if above else ""]
    parts += [f"at most {most}" if most else "", f"below {below}" if below else ""]
    return "".join(f", {part}" for part in parts if part)

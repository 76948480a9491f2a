from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import lance_dagster
from lance_dagster.errors import SettingsError
from lance_dagster.settings import (
    EvolutionSettings,
    SamplingSettings,
    allowed_values,
    parse_settings,
    settings_schema,
)
from lance_dagster.settings_table import DISAGREEMENTS, settings_table

ROOT = Path(lance_dagster.__file__).parents[1]
SCHEMA = settings_schema(EvolutionSettings)
LEAST: dict[str, Any] = {
    "model": {"path": "Qwen/Qwen2-7B"},
    "seed": {"instructions": "seed.jsonl", "reviews": "reviews.jsonl"},
    "evaluation": {"tasks": ["arc_challenge"]},
}


def with_value(path: str, value: Any, base: Mapping[str, Any] = LEAST) -> dict[str, Any]:
    """The least settings with one more value at a dotted path."""
    name, _, inner = path.partition(".")
    return {**base, name: with_value(inner, value, base.get(name, {})) if inner else value}


def parsed(path: str, value: Any) -> Any:
    """A value after validation."""
    found: Any = parse_settings(with_value(path, value))
    for name in path.split("."):
        found = getattr(found, name)
    return found


def refusal(path: str, value: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_settings(with_value(path, value))
    return str(caught.value)


def leaves(schema: Mapping[str, Any] = SCHEMA, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every setting with its dotted path and JSON schema, those of sections that may be unset aside."""
    for name, each in schema["properties"].items():
        if "properties" in each.get("anyOf", [{}])[0]:
            continue
        if "properties" in each:
            yield from leaves(each, f"{path}{name}.")
        else:
            yield f"{path}{name}", each


LEAVES = dict(leaves())


def wrong_values(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Values of the wrong kind, and values just out of range, for one setting."""
    if "anyOf" in schema:
        yield from (value for value in wrong_values(schema["anyOf"][0]) if value is not None)
        return
    yield None
    yield {"value": 1}
    if "enum" in schema or "const" in schema:
        yield from ("something else", 1, True, ["auto"])
    elif schema["type"] == "string":
        yield from (1, 1.5, True, ["text"], *([""] if schema.get("minLength") else []))
    elif schema["type"] == "boolean":
        yield from ("perhaps", 2, [True])
    elif schema["type"] == "array":
        yield from ("text", 1, True, [{}], [None], *([[]] if "items" in schema and schema.get("minItems") else []))
    else:
        yield from ("many", True, [1], float("nan"), float("inf"))
        step = 1 if schema["type"] == "integer" else 0.001
        if schema["type"] == "integer":
            yield 1.5
        if "minimum" in schema:
            yield schema["minimum"] - step
        if "maximum" in schema:
            yield schema["maximum"] + step
        if "exclusiveMinimum" in schema:
            yield schema["exclusiveMinimum"]
        if "exclusiveMaximum" in schema:
            yield schema["exclusiveMaximum"]


# What is refused


def test_a_wrong_value_in_a_section_that_may_be_unset_is_refused_by_name() -> None:
    message = refusal("start_from", {"experiment": "", "iteration": 99})
    assert "\n  start_from.experiment: " in message and "\n  start_from.iteration: " in message
    assert parsed("start_from", None) is None


@pytest.mark.parametrize("path", LEAVES)
def test_a_wrong_value_is_refused_by_name_with_the_value_and_what_is_allowed(path: str) -> None:
    for value in wrong_values(LEAVES[path]):
        message = refusal(path, value)
        assert f"\n  {path}" in message, value
        assert f"allowed: {allowed_values(LEAVES[path])}" in message, value
        culprit = value[0] if isinstance(value, list) and f"{path}.0" in message else value
        assert f"(got {culprit!r})" in message


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("iterations", 100, "whole number, 1 to 99, such as 4"),
        ("model.device", "gpu", "auto, cpu or cuda"),
        ("model.path", "", 'text, such as "Qwen/Qwen2-7B"'),
        ("model.threads", 0, "whole number, 1 to 256, or null"),
        ("model.revision", 20240607, "text, or null"),
        ("construction.threshold", 11, "number, 0 to 10, such as 7.0"),
        ("construction.threshold", float("nan"), "number, 0 to 10, such as 7.0"),
        ("construction.samples", True, "whole number, 1 to 64, such as 4"),
        ("construction.review.top_p", 0, "number, above 0, at most 1, such as 0.9"),
        (
            "construction.filters.instruction_words",
            "5-9",
            "list of 2, each a whole number, 0 or more, such as [5, 4096]",
        ),
        ("training.sft.learning_rate", "high", "number, above 0, at most 1, such as 1e-05"),
        ("training.dpo.learning_rate", 0, "number, above 0, at most 1, such as 5e-07"),
        ("training.dpo.warmup_ratio", 1, "number, 0 or more, below 1, such as 0.1"),
        ("evaluation.tasks", "mmlu", 'list of text, not empty, such as ["arc_challenge"]'),
        ("evaluation.chat_template", "perhaps", "true or false"),
    ],
)
def test_an_error_ends_with_the_allowed_range_and_an_example(path: str, value: Any, allowed: str) -> None:
    assert refusal(path, value).endswith(f"(got {value!r}); allowed: {allowed}")


@pytest.mark.parametrize("name", ["instruction_words", "response_words"])
@pytest.mark.parametrize("words", [[10, 5], [-1, 5], [5], [1, 2, 3], [True, 5], [0.5, 5], ["5", "9"]])
def test_word_limits_are_two_whole_numbers_in_order(name: str, words: list[Any]) -> None:
    message = refusal(f"construction.filters.{name}", words)
    assert f"construction.filters.{name}" in message
    assert "allowed: list of 2, each a whole number" in message


SECTIONS = ["", *sorted({path.rpartition(".")[0] + "." for path in LEAVES if "." in path})]


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_name_is_refused_in_every_section_with_the_known_ones(section: str) -> None:
    message = refusal(f"{section}treshold", 7)
    known = [path for path in LEAVES if path.startswith(section) and "." not in path.removeprefix(section)]
    assert f"\n  {section}treshold: Extra inputs are not permitted (got 7); allowed: a section with " in message
    assert all(path.removeprefix(section) in message for path in known)


@pytest.mark.parametrize("path", ["model.path", "seed.instructions", "seed.reviews", "evaluation.tasks"])
def test_a_setting_without_a_default_must_be_given(path: str) -> None:
    section, name = path.split(".")
    rest = {key: value for key, value in LEAST[section].items() if key != name}
    message = refusal(section, rest)
    assert f"\n  {path}: Field required; allowed: " in message
    assert "such as" in message


@pytest.mark.parametrize("section", ["model", "seed", "evaluation", "construction.filters"])
@pytest.mark.parametrize("value", [None, "text", [1]])
def test_a_section_that_is_no_mapping_is_refused_with_its_settings(section: str, value: Any) -> None:
    message = refusal(section, value)
    assert f"\n  {section}: " in message
    assert f"(got {value!r}); allowed: a section with " in message


@pytest.mark.parametrize("values", [None, [], "method: lance", 3])
def test_settings_that_are_no_mapping_are_refused(values: Any) -> None:
    with pytest.raises(SettingsError, match=r"settings: .*allowed: a section with method, iterations"):
        parse_settings(values)


def test_all_wrong_settings_are_listed_at_once() -> None:
    values = with_value("iterations", 0, with_value("model.device", "gpu", with_value("construction.samples", 99)))
    with pytest.raises(SettingsError) as caught:
        parse_settings(values)
    head, *lines = str(caught.value).splitlines()
    assert head == "wrong settings:"
    assert [line.split(":")[0].strip() for line in lines] == ["iterations", "model.device", "construction.samples"]


# What is allowed


@pytest.mark.parametrize("path", LEAVES)
def test_a_default_lies_in_its_own_range(path: str) -> None:
    if "default" in LEAVES[path]:
        value = LEAVES[path]["default"]
        expected = tuple(value) if isinstance(value, list) else value
        assert parsed(path, value) == expected


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("training.sft.learning_rate", "1e-5", 1e-5),  # YAML 1.1 reads it as text, because it has no dot
        ("construction.threshold", "7", 7.0),
        ("construction.filters.instruction_words", "[0, 0]", (0, 0)),
        ("evaluation.question_fields", "[question, choices]", ("question", "choices")),
        ("model.threads", "null", None),
    ],
)
def test_values_are_read_as_people_write_them_in_yaml(path: str, text: str, value: Any) -> None:
    assert parsed(path, yaml.safe_load(text)) == value


def test_settings_cannot_be_changed_after_loading() -> None:
    settings = parse_settings(LEAST)
    with pytest.raises(ValidationError, match="frozen"):
        settings.construction.threshold = 5.0  # type: ignore[misc]


def test_settings_survive_the_way_through_json() -> None:
    settings = parse_settings(with_value("construction.filters.instruction_words", [3, 20]))
    assert parse_settings(settings.model_dump(mode="json")) == settings


# What ships

SHIPPED = {path.parent.name: path for path in sorted(Path(str(files("lance_dagster") / "defs")).glob("*/defs.yaml"))}


def shipped(name: str) -> EvolutionSettings:
    return parse_settings(yaml.safe_load(SHIPPED[name].read_text(encoding="utf-8"))["attributes"]["settings"])


def test_the_embedded_experiment_and_the_papers_ship() -> None:
    assert {"mini", "qwen2_7b"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_experiment_has_valid_settings(name: str) -> None:
    assert shipped(name).iterations >= 1


def test_qwen2_7b_carries_the_values_of_the_paper_and_its_code() -> None:
    settings = shipped("qwen2_7b")
    construction, filters = settings.construction, settings.construction.filters
    assert settings.model.path == "Qwen/Qwen2-7B"
    assert settings.iterations == 4
    assert (construction.threshold, construction.samples, construction.reviews_per_item) == (7.0, 4, 3)
    sampled = SamplingSettings(temperature=0.7, top_p=0.9, max_new_tokens=512)
    for kind in (
        construction.review,
        construction.new_instruction,
        construction.response,
        construction.flawed_response,
    ):
        assert kind == sampled
    assert (construction.accept_above, construction.preference_gap) == (8.0, 2.0)
    assert (filters.instruction_words, filters.response_words) == ((5, 4096), (10, 4096))
    assert filters.rouge_threshold == 0.7


# What is documented


def test_docs_settings_md_is_what_the_module_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "lance_dagster.settings_table"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed == settings_table()
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == printed, "run `python -m lance_dagster.settings_table > docs/settings.md`"
    assert "`python -m lance_dagster.settings_table > docs/settings.md`" in written.splitlines()[0]


@pytest.mark.parametrize("path", LEAVES)
def test_every_setting_is_documented_with_range_default_and_description(path: str) -> None:
    section, _, name = path.rpartition(".")
    title = f"`{section}`" if section else "Top level"
    _, *parts = settings_table().split("\n### ")
    (part,) = [part for part in parts if title in part.splitlines()[0]]
    (row,) = [line for line in part.splitlines() if line.startswith(f"| `{name}` |")]
    assert allowed_values(LEAVES[path]) in row
    assert LEAVES[path]["description"] in row
    assert ("(must be given)" in row) == ("default" not in LEAVES[path])


def test_the_table_of_disagreements_has_every_switch_that_the_reference_code_decides_otherwise() -> None:
    named = {path for path, schema in LEAVES.items() if "reference code" in schema["description"]}
    assert {each.switch for each in DISAGREEMENTS} == named


def test_paper_and_code_disagree_on_each_listed_switch_and_the_default_is_a_value_of_it() -> None:
    for switch, paper, code in DISAGREEMENTS:
        assert paper != code, switch
        choices = LEAVES[switch].get("enum", [])
        for said in (paper, code):
            values = [part for part in said.split("`")[1::2] if choices]
            assert all(value in choices for value in values), switch

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from lance_dagster.errors import SettingsError
from lance_dagster.prompts.parsing import extract_answer, parse_rationale, parse_score
from lance_dagster.prompts.prompt_sets import PROMPT_KINDS, PromptKind, PromptSet, load_prompt_set

SHIPPED = ["lance_v1", "mini_v1"]
SEED = {"instruction": "Name a red fruit.", "response": "A cherry."}
Edit = Callable[[dict[str, Any]], object]


def own_set(folder: Path, edit: Edit) -> Path:
    """A prompt set of the user's: a small valid one, edited."""
    content: dict[str, Any] = {
        "name": "own",
        "version": 3,
        "changes": [{"version": 3, "date": "2026-11-20", "what": "shorter"}],
        "system": "Be brief.",
        "answer": {"user": "{{ instruction }}"},
        "review": {"user": "{{ instruction }} {{ response }}", "target": "{{ rationale }}\nscore: {{ score }}"},
        "new_instruction": {"user": "Like {{ instruction }}, answered {{ response }}", "answer_marker": "New:"},
        "flawed_response": {"user": "Worse than {{ response }} for {{ instruction }}"},
    }
    edit(content)
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def loaded(folder: Path, edit: Edit = lambda content: None) -> PromptSet:
    return load_prompt_set(str(own_set(folder, edit)))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_set_is_loaded_by_its_identity(name: str) -> None:
    assert load_prompt_set(name).identity == name


def test_an_own_set_is_loaded_by_its_path(tmp_path: Path) -> None:
    prompts = loaded(tmp_path)
    assert prompts.identity == "own_v3"
    assert prompts.messages("answer", instruction="Name a red fruit.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a red fruit."},
    ]


def test_without_a_system_prompt_there_is_no_system_message(tmp_path: Path) -> None:
    prompts = loaded(tmp_path, lambda content: content.update(system=None))
    assert [message["role"] for message in prompts.messages("review", **SEED)] == ["user"]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_seed_text_with_jinja_syntax_is_inserted_literally(name: str, kind: PromptKind) -> None:
    instruction = "Fix this template: {{ x }} {% if y %}{# {{ response }} #}{% endif %} <b>&amp;</b>\r\n"
    prompt = load_prompt_set(name).messages(kind, instruction=instruction, response="{{ instruction }}")
    assert instruction in prompt[-1]["content"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_answer_prompt_is_the_bare_instruction(name: str) -> None:
    assert load_prompt_set(name).messages("answer", **SEED)[-1]["content"] == "Name a red fruit."


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("score", [0, 0.5, 3, 20 / 3, 7.0, 8.5, 10])
@pytest.mark.parametrize("rationale", ["The response is right.", "They gave it 'score: 3'\n\nI disagree: {{ x }}."])
def test_a_review_target_is_read_back_as_it_was(name: str, score: float, rationale: str) -> None:
    target = load_prompt_set(name).review_target(rationale, score)
    assert parse_score(target) == pytest.approx(score, abs=1e-4)
    assert parse_rationale(target) == rationale


def test_the_review_prompt_shows_the_tagged_pair_and_ends_in_no_score_of_its_own() -> None:
    prompt = load_prompt_set("lance_v1").messages("review", **SEED)[-1]["content"]
    assert "<question>\nName a red fruit.\n</question>" in prompt
    assert "<response>\nA cherry.\n</response>" in prompt
    assert parse_score(prompt) is None  # a model that echoes the prompt has not given a score


@pytest.mark.parametrize("kind", ["new_instruction", "flawed_response"])
def test_few_shot_prompts_show_three_examples_in_the_form_that_is_extracted(kind: PromptKind) -> None:
    prompts = load_prompt_set("lance_v1")
    marker = prompts.template(kind).answer_marker
    assert marker == "Final Answer:"
    shots, own_pair = prompts.messages(kind, **SEED)[-1]["content"].split("### Your turn\n")
    _, *examples = shots.split("### Example ")
    assert len(examples) == 3
    for example in examples:
        completion = example.split("</response>")[1]
        assert completion.lstrip().startswith("Thought Process:")
        assert len((extract_answer(completion, marker) or "").split()) >= 10  # the fewest words that the filters keep
    assert "<instruction>\nName a red fruit.\n</instruction>\n<response>\nA cherry.\n</response>" in own_pair


def test_flawed_examples_are_about_as_long_as_the_good_ones() -> None:
    template = load_prompt_set("lance_v1").template("flawed_response")
    for example in template.user.split("### Your turn")[0].split("### Example ")[1:]:
        good, completion = example.split("<response>")[1].split("</response>")
        flawed = extract_answer(completion, template.answer_marker) or ""
        assert 0.6 < len(flawed) / len(good.strip()) < 1.67


def test_a_missing_field_raises() -> None:
    with pytest.raises(jinja2.UndefinedError, match="response"):
        load_prompt_set("lance_v1").messages("review", instruction="Name a red fruit.")


def test_a_digest_changes_with_the_wording_of_its_kinds_only(tmp_path: Path) -> None:
    before = loaded(tmp_path)
    after = loaded(tmp_path, lambda content: content["new_instruction"].update(user="Unlike {{ instruction }}"))
    assert after.digest("new_instruction") != before.digest("new_instruction")
    assert after.digest("review", "new_instruction") != before.digest("review", "new_instruction")
    assert after.digest("review", "answer", "flawed_response") == before.digest("review", "answer", "flawed_response")


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_a_digest_changes_with_the_system_prompt(tmp_path: Path, kind: PromptKind) -> None:
    before = loaded(tmp_path)
    after = loaded(tmp_path, lambda content: content.update(system="Be thorough."))
    assert after.digest(kind) != before.digest(kind)


def test_a_digest_changes_with_the_review_target_and_the_answer_marker(tmp_path: Path) -> None:
    before = loaded(tmp_path)
    target = loaded(tmp_path, lambda content: content["review"].update(target="{{ rationale }} Score: {{ score }}"))
    marker = loaded(tmp_path, lambda content: content["new_instruction"].update(answer_marker=None))
    assert target.digest("review") != before.digest("review")
    assert marker.digest("new_instruction") != before.digest("new_instruction")


def test_a_digest_ignores_the_order_of_kinds_the_name_and_the_change_log(tmp_path: Path) -> None:
    before = loaded(tmp_path)
    after = loaded(tmp_path, lambda content: content.update(name="renamed", changes=[]))
    assert after.digest("answer", "review") == before.digest("review", "answer")


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    path = str(own_set(tmp_path, lambda content: None))
    before = load_prompt_set(path)
    own_set(tmp_path, lambda content: content.update(version=4))
    assert (before.identity, load_prompt_set(path).identity) == ("own_v3", "own_v4")


def test_an_unknown_set_is_refused_with_the_names_of_the_shipped_ones() -> None:
    with pytest.raises(SettingsError, match=r"'lance_v9'.*lance_v1, mini_v1"):
        load_prompt_set("lance_v9")


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda content: content.update(reviews={}), "reviews"),
        (lambda content: content["answer"].update(usr="x"), r"answer\.usr"),
        (lambda content: content.pop("flawed_response"), "flawed_response"),
        (lambda content: content.update(version="one"), r"version.*'one'"),
        (lambda content: content["new_instruction"].update(answer_marker=" :"), r"answer_marker"),
        (lambda content: content["review"].pop("target"), r"review\.target"),
        (lambda content: content["review"].update(target="{{ rationale }}"), "no score can be read"),
        (lambda content: content["review"].update(target="score: {{ score }}. {{ rationale }}"), "no score can be"),
        (lambda content: content["answer"].update(user="{{ instruction"), r"answer\.user does not parse"),
        (lambda content: content["review"].update(target="{% if %}"), r"review\.target does not parse"),
        (lambda content: content["answer"].update(user="{{ instruction | shout }}"), r"answer\.user.*shout"),
        (lambda content: content["review"].update(user="{{ instrution }}"), r"review\.user uses instrution"),
        (lambda content: content["answer"].update(user="{{ response }}"), r"answer\.user uses response"),
    ],
)
def test_a_wrong_set_is_refused_with_its_file_and_its_fault(tmp_path: Path, edit: Edit, complaint: str) -> None:
    path = own_set(tmp_path, edit)
    with pytest.raises(SettingsError, match=complaint) as refused:
        load_prompt_set(str(path))
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("content", [b"name: [lance", b"a: {{ b }}: c", b"\xff\xfename", b"", b"- a list"])
def test_a_file_that_holds_no_prompt_set_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"broken\.yaml"):
        load_prompt_set(str(path))


def test_a_template_cannot_reach_python_objects(tmp_path: Path) -> None:
    prompts = loaded(tmp_path, lambda content: content["answer"].update(user="{{ instruction.__class__.__mro__ }}"))
    with pytest.raises(jinja2.exceptions.SecurityError):
        prompts.messages("answer", instruction="Name a red fruit.")

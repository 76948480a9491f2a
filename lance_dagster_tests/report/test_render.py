import re
from html.parser import HTMLParser

import pytest

from lance_dagster.report import render
from lance_dagster.report.pictures import draw
from lance_dagster.report.summary import Summary, build_summary
from lance_dagster_tests.report.tables import (
    baseline,
    candidate,
    drift,
    evolution,
    iteration,
    pair,
    score_table,
    scores,
    seed,
    sft_row,
)

EVIL = "<script>alert('x')</script> | **bold** ![p](http://x.org/p.png)\n# head & `code` 🙂 \x1b[31m\x00"


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(summary: Summary) -> Page:
    return Page(render.to_html(summary, draw(summary)))


@pytest.fixture(scope="module")
def evil() -> Summary:
    return evolution(
        experiment=EVIL,
        notes=[EVIL],
        last=(0.62,),
        seeds=[seed(4.0, [4.0], "instruction")],
        ledger=[candidate("response", "low_reward", instruction=EVIL, response=EVIL), candidate("response", score=9.0)],
        sft=[sft_row(0, prompt=EVIL, response=EVIL)],
        pairs=[pair(0, prompt=EVIL, chosen=EVIL, rejected=EVIL)],
        drifts=[drift(0, against=EVIL)],
    )


def test_generated_text_cannot_become_html(evil: Summary) -> None:
    html = render.to_html(evil, draw(evil))
    assert "<script" not in html.lower()
    parsed = Page(html)
    assert "<script>alert('x')</script> | **bold**" in parsed.text
    assert "🙂" in parsed.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", html)


def test_the_page_loads_nothing_from_elsewhere(evil: Summary) -> None:
    tags = page(evil).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    loading = ("src", "href", "srcset", "style", "action")
    sources = [attrs[name] or "" for _, attrs in tags for name in loading if name in attrs]
    assert len(sources) == 3 and sources.pop(0) == "lineage.html"  # beside it, opened by a click
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not any(name.startswith("on") for _, attrs in tags for name in attrs)


def test_generated_text_cannot_break_or_format_a_markdown_table(evil: Summary) -> None:
    text = render.to_markdown(evil)
    assert not any(bad in text for bad in ("<script", "\x00", "\x1b"))
    assert not re.search(r"(?<!\\)!\[|(?<!\\)\]\(|\*\*bold", text)
    row = next(line for line in text.splitlines() if line.startswith("| 9.00"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 4  # three cells
    assert "↵ \\# head &amp; \\`code\\` 🙂" in row


def test_the_terminal_gets_no_control_characters_and_no_unicode_but_plus_minus() -> None:
    text = render.to_text(evolution(ledger=[candidate("response", "odd 🙂 \x1b[31m")]))
    assert {c for c in text if not " " <= c <= "~"} == {"\n", "±"}
    assert "odd \\U0001f642 \\x1b[31m 1" in text


def test_scores_are_percent_with_one_decimal_and_their_error() -> None:
    lines = render.to_markdown(evolution(base=0.60, initial=0.50, again=0.51, last=(0.62,))).splitlines()
    table = [line for line in lines if line.startswith("|")][:7]
    minus, dash = "\N{MINUS SIGN}", "\N{EN DASH}"
    assert table == [
        "| checkpoint | stage | mini\\_test | against base | against M\\_0 | beyond noise |",
        "| :--- | :--- | ---: | ---: | ---: | :--- |",
        f"| M | untouched base | 60.0 ± 3.0 | {dash} | +10.0 ± 4.2 | {dash} |",
        f"| M\\_0 | initial | 50.0 ± 3.0 | {minus}10.0 ± 4.2 | {dash} | {dash} |",
        f"| M\\_0 again | initial again | 51.0 ± 3.0 | {minus}9.0 ± 4.2 | +1.0 ± 4.2 | no |",
        f"| M\\_0^S | SFT 000 | 50.0 ± 3.0 | {minus}10.0 ± 4.2 | 0.0 ± 4.2 | no |",
        "| M\\_0^D = M\\_1 | DPO 000 | 62.0 ± 3.0 | +2.0 ± 4.2 | +12.0 ± 4.2 | yes |",
    ]


def test_with_several_tasks_each_has_a_column_before_the_mean() -> None:
    table = score_table(*(scores(s, {"a": 0.2, "b": 0.4}) for s in ("base", "initial", "initial_again")))
    text = render.to_text(build_summary("x", "lance", table, []))
    header, _, base, *_ = text.split("\n\n")[1].splitlines()
    assert header.split()[:5] == ["checkpoint", "stage", "a", "b", "mean"]
    assert "20.0 ± 3.0  40.0 ± 3.0  30.0 ± 2.1" in base


def test_columns_of_the_terminal_table_line_up() -> None:
    table = render.to_text(evolution()).split("\n\n")[1].splitlines()
    ends = [match.end() for match in re.finditer("-+", table[1])]
    for line in (table[0], *table[2:]):
        assert all(end >= len(line) or line[end : end + 2] == "  " for end in ends)


def test_the_funnel_lists_each_reason() -> None:
    ledger = [candidate("response", "low_reward"), candidate("response", "truncated"), candidate("response")]
    line = "| 000 | response | 3 | 1 | 33.3 % | 2 | low\\_reward 1, truncated 1 |"
    assert line in render.to_markdown(evolution(last=(0.6,), ledger=ledger))


def test_parts_of_a_task_are_listed_with_their_change() -> None:
    parts = {"mini_test": 0.5, "mini_test/addition": 0.3}
    table = score_table(*(scores(stage, parts) for stage in ("base", "initial", "initial_again")))
    evaluated = score_table(scores("dpo", {"mini_test": 0.5, "mini_test/addition": 0.45}, 0))
    parsed = page(build_summary("x", "lance", table, [iteration(0, evaluated)]))
    assert "Parts of the tasks" in parsed.text
    assert "mini_test/addition30.030.045.0+15.0 ± 4.2" in parsed.text.replace("\n", "")


def test_an_experiment_without_iterations_has_no_empty_sections() -> None:
    summary = evolution(last=())
    text = page(summary).text
    assert all(part in text for part in ("No iteration is evaluated yet", "Learning curve"))
    assert not any(section in text for section in ("Funnel", "Drift", "Samples", "Parts"))
    assert "Funnel" not in render.to_markdown(summary)


def test_an_iteration_without_rows_says_so() -> None:
    assert "No rows." in page(evolution(last=(0.6,))).text


def test_checkpoint_names_are_typeset_but_texts_are_left_alone() -> None:
    html = render.to_html(summary := evolution(last=(0.62,), sft=[sft_row(0, prompt="say M_1")]), draw(summary))
    assert '<span class="m">M<sub>0</sub><sup>S</sup></span>' in html
    assert "say M_1" in html


def test_notes_of_the_caller_and_the_noise_floor_are_in_the_notes() -> None:
    text = page(evolution(initial=0.50, again=0.52, notes=["threshold 7.0"])).text
    assert "threshold 7.0" in text
    assert "here 2.0 points" in text


def test_iterations_that_are_out_of_date_are_named_wherever_the_headline_is() -> None:
    warning = (
        "Iteration 001 is out of date: <eval_scores> is of a, but dpo_checkpoint is b. `dg launch` makes it again."
    )
    summary = build_summary("x", "lance", baseline(0.6, 0.5, 0.51), [iteration(0)], out_of_date=[warning])
    assert warning.replace("`", "") in page(summary).text, "commands are set as code"
    assert "Iteration 001 is out of date" in render.to_markdown(summary) and "<eval" not in render.to_markdown(summary)
    assert "Iteration 001 is out of date" in render.to_text(summary)
    assert summary.to_json()["out_of_date"] == [warning]


def test_a_markdown_image_carries_its_picture() -> None:
    assert render.markdown_image(b"\x89PNG", "a ] b") == "![a \\] b](data:image/png;base64,iVBORw==)"

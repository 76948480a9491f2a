"""What a user sees and clicks: Debian's Chromium, without a window, on a real web server and daemon.

Screenshots are left in data/screenshots, which git ignores.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, Playwright, Response, expect, sync_playwright

from lance_dagster_tests.loop.events import with_served_history
from lance_dagster_tests.loop.server import serving, wait_until
from lance_dagster_tests.tiny import REPOSITORY, Tiny, tiny_settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = REPOSITORY / "data/screenshots"
PATIENCE = 120_000  # milliseconds that the page may take to show something

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")


def shoot(page: Page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def page_of(playwright: Playwright) -> Page:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    return page


def test_the_loop_is_seen_and_run_in_the_browser(evolved: Tiny, tmp_path: Path) -> None:
    with_served_history(evolved, tmp_path)
    settings = tiny_settings(tmp_path)
    with serving(tmp_path, settings) as server, sync_playwright() as playwright:
        page = page_of(playwright)
        page.goto(f"{server.url}/locations/tiny/asset-groups/tiny/lineage")
        expect(page.get_by_text("policy_model")).to_be_visible()
        expect(page.get_by_text(re.compile("promot.*_checkpoint"))).to_be_visible()
        edges = len(server.query("{ assetNodes { dependencyKeys { path } } }")["assetNodes"])
        wait_until(lambda: page.locator("svg path[marker-end]").count() >= edges or None, 60, "no edges are drawn")
        page.wait_for_timeout(3000)  # until the states of the assets are there, for the picture alone
        shoot(page, "lineage")

        page.goto(f"{server.url}/locations/__repository__@tiny/jobs/tiny_one_iteration")
        page.get_by_role("button", name="Materialize all…").click()
        page.get_by_role("button", name="Missing", exact=True).click()  # iteration 002
        page.get_by_role("button", name="Launch 1 run").click()
        launched = wait_until(lambda: server.runs(**{"dagster/partition": "002"}) or None, 60, "no run was launched")
        assert server.wait_for_run(launched[0]["runId"], 600) == "SUCCESS"

        page.goto(f"{server.url}/assets/tiny/policy_model?partition=002&view=partitions")
        expect(page.get_by_text("Materialized (3)")).to_be_visible()
        expect(page.get_by_text("source_run")).to_be_visible()
        expect(page.get_by_role("link", name="tiny / dpo_checkpoint")).to_be_visible()
        shoot(page, "policy_model")

        page.goto(f"{server.url}/assets/tiny/reviewed_seed?partition=002&view=partitions")
        row = page.locator("tr", has_text="score/histogram")
        row.get_by_text("[Show Markdown]").click()
        picture = page.locator("img[src^='data:image/png']")
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.naturalWidth") > 300
        shoot(page, "histogram")

        page.goto(f"{server.url}/assets/tiny/eval_scores?view=overview")
        page.get_by_text("Plots", exact=True).first.click()
        expect(page.get_by_text("eval/dpo/mini_dev/exact_match")).to_be_visible()
        expect(page.locator("canvas").first).to_be_visible()
        page.get_by_text("eval/dpo/mini_dev/exact_match").scroll_into_view_if_needed()
        shoot(page, "plots")

        page.goto(f"{server.url}/assets/tiny/dpo_checkpoint?view=checks")
        expect(page.get_by_text("first_loss_is_ln_2").first).to_be_visible()
        shoot(page, "checks")


def test_the_graphs_of_all_shipped_experiments_load_without_errors(tmp_path: Path) -> None:
    shipped = sorted(path.parent.name for path in (REPOSITORY / "lance_dagster/defs").glob("*/defs.yaml"))
    with serving(tmp_path, None) as server, sync_playwright() as playwright:
        page, errors = page_of(playwright), []
        answers: list[Response] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("response", lambda answer: answers.append(answer) if answer.url.endswith("/graphql") else None)
        for experiment in shipped:
            page.goto(f"{server.url}/locations/lance_dagster/asset-groups/{experiment}/lineage")
            for asset in ("policy_model", "evolution_report"):
                expect(page.get_by_text(asset, exact=True).first).to_be_visible()
            page.wait_for_load_state("networkidle")
            errors += [answer.text() for answer in answers if answer.status != 200 or "errors" in answer.json()]
            answers.clear()
        page.goto(f"{server.url}/asset-groups")
        for experiment in shipped:
            expect(page.get_by_text(experiment, exact=True).first).to_be_visible()
        assert errors == []
        workspace = server.query(
            "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"
        )
        (entry,) = workspace["workspaceOrError"]["locationEntries"]
        assert entry["locationOrLoadError"]["__typename"] == "RepositoryLocation"


@pytest.mark.parametrize("width", [420, 1400])
def test_the_lineage_page_is_readable_on_a_phone_and_on_a_desk(evolved: Tiny, width: int) -> None:
    with sync_playwright() as playwright:
        page = page_of(playwright)
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((Path(str(evolved.experiment.store.folder)) / "lineage.html").resolve().as_uri())
        label = page.locator(".texts td.l", has_text="instruction").first
        box = label.bounding_box()
        assert box is not None and box["height"] < 60, "its letters stand on one line"
        assert page.evaluate("document.documentElement.scrollWidth") <= width

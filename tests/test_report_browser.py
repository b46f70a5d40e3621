"""The page in headless Chromium: charts are drawn, nothing is asked of any host, nothing overflows."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from report_files import edit_lines
from report_fixtures import finished_runs

from kava.report import build_report, render_html

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    inputs = finished_runs(root, n=120)
    attack = "</script><script>window.attacked = 1</script>"
    attack += "<img src='http://evil.test/x' onerror='window.attacked = 1'>"
    for seeds in inputs.runs.values():
        edit_lines(seeds["42"].evaluation / "samples.jsonl", lambda rows: [{**row, "answer": attack} for row in rows])
    path = root / "ab_report.html"
    path.write_text(render_html(build_report(inputs)), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_charts_are_drawn_and_nothing_is_requested(page_file: Path, width: int, scheme: str) -> None:
    from playwright.sync_api import sync_playwright

    requests: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
        page.goto(page_file.as_uri())
        page.wait_for_function(
            "[...document.querySelectorAll('[data-chart]')].every(place => place.querySelector('svg'))"
        )
        charts = page.locator("[data-chart]")
        assert charts.count() == 7
        for index in range(charts.count()):
            box = charts.nth(index).locator("svg").first.bounding_box()
            assert box is not None
            assert box["width"] > 200
            assert box["height"] > 100
            # Drawn marks, not only axes.
            assert charts.nth(index).locator("svg .role-mark path").count() > 0
        # Wide tables scroll in their own box; the page itself never does.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.attacked === undefined")

        curve = page.locator("[data-chart='spec-ce'] svg").first
        curve.scroll_into_view_if_needed()
        curve.hover()
        page.wait_for_selector("#vg-tooltip-element.visible")
        assert "step" in page.locator("#vg-tooltip-element").inner_text()
        browser.close()
    assert complaints == []
    assert requests == [page_file.as_uri()]

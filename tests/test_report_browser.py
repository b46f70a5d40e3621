"""The page in headless Chromium: charts are drawn, tables sort, questions filter, nothing is asked of any host."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from report_files import edit_lines
from report_fixtures import finished_runs
from test_report_text import text_runs

from kava.report.build import build_report
from kava.report.page.render import render_html
from kava.report.samples import FIRST

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]

ATTACK = "</script><script>window.attacked = 1</script><img src='http://evil.test/x' onerror='window.attacked = 1'>"
ATTACK += " <!-- \" ' ` & \u2028 \u2029 ]]> ${window.attacked = 1} \ud800 \x00"
BABBLE = ATTACK + " blah" * 20_000 + " the-very-end"
# Questions whose answers, and for the last whose text too, are hostile.
HOSTILE = {7: ATTACK, 8: BABBLE, 9: ATTACK}


class Shown(NamedTuple):
    """A page on disk, and the numbers of the report that it shows."""

    file: Path
    numbers: dict[str, Any]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    root = tmp_path_factory.mktemp("page")
    inputs = finished_runs(root, n=120)

    def hostile(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = [{**row, "answer": HOSTILE.get(row["doc_id"], row["answer"])} for row in rows]
        rows = [{**row, "question": row["question"] + " Really?" * (row["doc_id"] % 3)} for row in rows]
        return [{**row, "question": ATTACK} if row["doc_id"] == 9 else row for row in rows]

    for evaluation in (files.evaluation for seeds in inputs.runs.values() for files in seeds.values()):
        edit_lines(evaluation / "samples.jsonl", hostile)
    path = inputs.runs["flat"]["42"].evaluation / "samples.jsonl"
    path.write_bytes(path.read_bytes().replace(b"She has", b"\xff\xfe She has", 1))
    report = build_report(inputs)
    path = root / "ab_report.html"
    path.write_text(render_html(report), encoding="utf-8")
    return Shown(path, report.to_dict())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, shown: Shown) -> Iterator[Callable[..., Any]]:
    """Opens the page; afterwards nothing was asked of any host, and nothing complained."""
    contexts, requests, complaints = [], [], []

    def open_page(width: int = 1280, scheme: str = "light", **further: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **further)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
        page.goto(shown.file.as_uri())
        return page

    yield open_page
    assert all(page.evaluate("window.attacked === undefined") for context in contexts for page in context.pages)
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests == [shown.file.as_uri()] * len(contexts)


def wait_for_charts(page: Any) -> None:
    # By locators: the page's policy lets no function of playwright's wait inside it.
    wait_for(page.locator("[data-chart]:not(:has(svg))"), 0)


def wait_for(locator: Any, count: int) -> None:
    from playwright.sync_api import expect

    expect(locator).to_have_count(count)


def column(page: Any, table: str, number: int) -> list[str]:
    """Texts of a column of the sorted body, 1 for the first."""
    return page.locator(f"{table} tbody:first-of-type tr > :nth-child({number})").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_charts_are_drawn_and_nothing_is_requested(opened: Callable[..., Any], width: int, scheme: str) -> None:
    page = opened(width, scheme)
    wait_for_charts(page)
    charts = page.locator("[data-chart]")
    assert charts.count() == 10
    for index in range(charts.count()):
        box = charts.nth(index).locator("svg").first.bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 100
        # Drawn marks, not only axes.
        assert charts.nth(index).locator("svg .role-mark path").count() > 0
    # Wide tables scroll in their own box; the page itself never does.
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    curve = page.locator("[data-chart='spec-ce'] svg").first
    curve.scroll_into_view_if_needed()
    curve.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "step" in page.locator("#vg-tooltip-element").inner_text()


def test_columns_sort_by_value_and_what_is_missing_comes_last(opened: Callable[..., Any], shown: Shown) -> None:
    page = opened()
    table = "#result .sortable"
    heading = page.locator(f"{table} thead th", has_text="Strict match")
    by_rate = sorted(shown.numbers["arms"], key=lambda arm: -shown.numbers["arms"][arm]["strict_match_mean"])
    for names, order in ((by_rate, "descending"), (by_rate[::-1], "ascending")):
        heading.locator("button").click()
        assert [text.split()[0] for text in column(page, table, 1)] == names
        assert heading.get_attribute("aria-sort") == order
    parameters = page.locator(f"{table} thead th", has_text="Projector parameters")
    for expected in (["1,234,567", "4,321", "–"], ["4,321", "1,234,567", "–"]):
        parameters.locator("button").click()
        assert column(page, table, 12) == expected
    assert page.locator("[aria-sort]").count() == 1
    # The references stay where they are.
    assert page.locator(f"{table} tbody.reference tr").count() == 2


def test_columns_sort_by_keyboard(opened: Callable[..., Any], shown: Shown) -> None:
    page = opened()
    table = "#comparisons .sortable"
    page.locator(f"{table} thead button").first.focus()
    page.keyboard.press("Enter")
    names = [f"{row['a']} − {row['b']}" for row in shown.numbers["comparisons"]]
    assert column(page, table, 1) == sorted(names)
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    by_delta = sorted(shown.numbers["comparisons"], key=lambda row: -row["delta"])
    assert column(page, table, 1) == [f"{row['a']} − {row['b']}" for row in by_delta]


@pytest.mark.parametrize("width", [1280, 390])
def test_what_a_comparison_reads_as_is_in_view_without_scrolling(opened: Callable[..., Any], width: int) -> None:
    page = opened(width)
    for cell in page.locator("#comparisons .reads").all():
        box = cell.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= width
    if width == 1280:
        assert page.evaluate(
            "[...document.querySelectorAll('#comparisons .scroll')].every(box => box.scrollWidth <= box.clientWidth)"
        )


def expected_count(shown: Shown, wanted: Callable[[dict[str, list[int]]], bool], seed: str = "42") -> int:
    """Questions whose marks (arm → strict match) are wanted."""
    samples = shown.numbers["samples"]
    rows = [[answer[1] for answer in question["answers"][seed]] for question in samples["questions"]]
    return sum(wanted(dict(zip(samples["arms"], row, strict=True))) for row in rows)


def test_questions_filter_by_marks_arms_and_seed(opened: Callable[..., Any], shown: Shown) -> None:
    page = opened()

    def found() -> str:
        return page.locator("#explorer output").inner_text()

    assert found() == "120 of 120 questions match"
    assert page.locator(".sample").count() == 20
    page.locator("select[name=right]").select_option("structured")
    page.locator("select[name=wrong]").select_option("flat")
    for seed in ("42", "43"):
        page.locator("select[name=seed]").select_option(seed)
        n = expected_count(shown, lambda marks: marks["structured"] == 1 and marks["flat"] == 0, seed)
        assert n > 0
        assert found() == f"{n} of 120 questions match"
    page.get_by_role("button", name="Clear").click()
    page.locator("select[name=seed]").select_option("42")
    for option, test in (("arms disagree", lambda n: 0 < n < 3), ("all right", lambda n: n == 3)):
        page.locator("select[name=marks]").select_option(option)
        n = expected_count(shown, lambda marks: test(sum(marks.values())))  # noqa: B023
        assert found() == f"{n} of 120 questions match"
    shown_marks = page.locator(".sample .answer .mark").all_inner_texts()
    assert set(shown_marks) == {"✓ right"}


def test_questions_filter_by_keyboard_and_more_are_shown_on_demand(opened: Callable[..., Any], shown: Shown) -> None:
    page = opened()
    found = page.locator("#explorer output")
    page.locator("input[name=text]").focus()
    page.keyboard.type("THE-very-end")
    wait_for(page.locator(".sample"), 1)
    assert page.locator(".sample h3").all_inner_texts() == ["question 8"]
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    wait_for(page.locator(".sample"), 20)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    n = expected_count(shown, lambda marks: len(set(marks.values())) > 1)
    assert n > 20
    assert found.inner_text() == f"{n} of 120 questions match"
    page.locator(".more").focus()
    page.keyboard.press("Enter")
    assert page.locator(".sample").count() == min(40, n)
    assert page.evaluate("document.activeElement === document.querySelectorAll('.sample')[20]")


def test_what_a_model_wrote_shows_as_text(opened: Callable[..., Any]) -> None:
    page = opened()
    page.locator("input[name=text]").fill("window.attacked")
    wait_for(page.locator(".sample"), 3)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    written = page.locator("#explorer .text").all_text_contents()
    clean = ATTACK.replace("\ud800", "?").replace("\x00", "\ufffd")
    assert sum(text == clean for text in written) == 3 + 3 + 1
    assert sum(text == BABBLE.replace(ATTACK, clean) for text in written) == 3
    assert page.locator("#explorer :is(img, script:not([type='application/json']))").count() == 0
    page.locator("input[name=text]").fill("\ufffd\ufffd She has")
    wait_for(page.locator(".sample"), 1)


def test_without_javascript_the_first_questions_and_all_tables_are_there(opened: Callable[..., Any]) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator(".sample").count() == FIRST
    assert not page.locator(".filters").is_visible()
    assert page.locator("#result .sortable tbody tr").count() == 5


def test_print_has_no_controls_and_cuts_no_table(opened: Callable[..., Any]) -> None:
    page = opened(width=718)  # A4 at 96 dots per inch, less margins of 10 mm
    wait_for_charts(page)
    page.emulate_media(media="print")
    for control in (".filters", ".more", "nav"):
        assert not page.locator(control).is_visible()
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll table')].every(table => table.getBoundingClientRect().right <= 718)"
    )


def test_questions_that_have_numbers_instead_of_marks_filter_by_their_words(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.html"
    file.write_text(render_html(build_report(text_runs(tmp_path, n=40))), encoding="utf-8")
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    count = page.locator("#explorer output")
    assert count.inner_text() == "40 of 40 questions match"
    assert page.locator(".sample .answer .tag").first.inner_text().startswith("answer NLL 1.")
    page.locator("input[name=text]").fill("number 17")
    wait_for(page.locator(".sample"), 1)
    page.get_by_role("button", name="Clear").click()
    assert count.inner_text() == "40 of 40 questions match"
    assert page.locator("select[name=marks]").count() == 0
    page.close()
    assert complaints == []


@pytest.mark.skipif(importlib.util.find_spec("axe_playwright_python") is None, reason="axe-core is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_accessibility_issue(opened: Callable[..., Any], width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(width, scheme)
    wait_for_charts(page)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    violations = Axe().run(page).response["violations"]
    serious = [each for each in violations if each["impact"] in ("serious", "critical")]
    assert [(each["id"], [node["html"] for node in each["nodes"][:3]]) for each in serious] == []

"""The page: it stands alone, shows what models wrote as text, and says what it does not know."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, get_args

import pytest
from report_files import edit_json, edit_lines
from report_fixtures import finished_runs, numbers_of_two_seeds, report_of_two_seeds, runs_of_one_seed  # noqa: F401

from kava.config import arms
from kava.report.build import Report, build_report
from kava.report.inputs import ReportInputs
from kava.report.page import glossary
from kava.report.page.render import render_html
from kava.report.verdict.question import ALONE, question


class Page(HTMLParser):
    """Text, tags and resource attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.text = "".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def test_collapse_and_stage_warnings_are_shown(runs: ReportInputs) -> None:
    path = runs.runs["structured"]["42"].student / "manifest.json"
    edit_json(path, alignment={"cos_sim": 0.99, "r2": 0.01}, warnings=["cosine under 0.5 at step 200"])
    html = render_html(build_report(runs))
    assert "structured (seed 42): collapse." in html
    assert "structured (seed 42, distill): cosine under 0.5 at step 200" in html


def test_model_output_is_text_whatever_it_holds(runs: ReportInputs) -> None:
    attack = "</pre></script><script>alert('x')</script><img src=http://evil.test/ onerror=alert(1)> & \"q\""
    long = attack + " begin " + "blah " * 20_000 + " the-very-end"

    def hostile(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "answer": long if row["doc_id"] == 0 else attack, "question": attack} for row in rows]

    for seeds in runs.runs.values():
        edit_lines(seeds["42"].evaluation / "samples.jsonl", hostile)
    clean = Page(render_html(build_report(finished_runs(runs.stores["demo"].parents[2] / "clean", n=60))))
    html = render_html(build_report(runs))
    page = Page(html)
    assert page.text.count(attack) > 20
    assert "begin blah blah" in page.text
    assert page.count("img") == 0
    assert page.count("script") == clean.count("script")
    assert len(html.encode()) < 3_000_000


def test_100_kb_answer_is_folded_and_whole(runs: ReportInputs) -> None:
    path = runs.runs["flat"]["42"].evaluation / "samples.jsonl"
    shown = build_report(runs).samples.questions[0].doc_id
    text = "digits " * 14_000 + "the-very-end"
    edit_lines(path, lambda rows: [{**row, "answer": text} if str(row["doc_id"]) == shown else row for row in rows])
    html = render_html(build_report(runs))
    assert html.count("the-very-end") == 1
    assert "98,012 characters in all" in html


def test_invalid_utf8_and_surrogates_show_as_text(runs: ReportInputs) -> None:
    path = runs.runs["flat"]["42"].evaluation / "samples.jsonl"
    raw = path.read_bytes().replace(b"She has", b"\xff\xfe \\ud800 \\u0000 She has")
    path.write_bytes(raw)
    html = render_html(build_report(runs))
    assert html.encode("utf-8").decode("utf-8") == html
    assert "\ufffd\ufffd" in html
    assert "\x00" not in html


def test_an_arm_whose_alignment_is_unknown_throughout_shows_dashes_and_no_grade(runs: ReportInputs) -> None:
    manifest = runs.runs["structured"]["42"].student / "manifest.json"
    alignment = json.loads(manifest.read_text())["alignment"]
    unknown = {name: None for name in alignment if name != "per_head"}
    heads = {name: [[[None] * 2] * 3] * 2 for name in alignment["per_head"]}
    edit_json(manifest, alignment={**unknown, "per_head": heads})
    report = build_report(runs)
    numbers = report.to_dict()
    row = numbers["arms"]["structured"]["alignment"]
    assert row["grade"] is row["cos_sim_centered"] is None
    assert row["collapsed"] is False
    assert render_html(report).count('<td class="none">n/a</td>') == 2 * 2 * 3 * 2


def test_arms_with_aligners_that_never_finished_are_not_said_to_have_none(runs: ReportInputs) -> None:
    report = build_report(replace(runs, runs={"sft": runs.runs["sft"]}))
    assert "no arm with an aligner has a finished run" in render_html(report)


def test_page_names_no_resource_of_any_host(report: Report) -> None:
    html = render_html(report)
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert not attributes.get("src")
        assert (attributes.get("href") or "#").startswith("#")
    style = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    assert len(html.encode()) < 3_000_000


def test_tables_have_captions_and_scoped_headers(report: Report) -> None:
    page = Page(render_html(report))
    assert page.count("table") == page.count("caption") > 5
    assert all(attributes.get("scope") for tag, attributes in page.elements if tag == "th")
    assert page.count("h1") == 1


def test_every_loss_has_its_word() -> None:
    union, _ = get_args(arms.Loss)
    assert set(glossary.LOSSES) == {loss.model_fields["kind"].default for loss in get_args(union)}


def test_the_question_stands_above_the_verdict_and_the_words_at_the_end(report: Report) -> None:
    html = render_html(report)
    asked = (
        "Does distilling the KV cache help, and does keeping its structure (layers × heads × time × dim) beat "
        "flattening it?"
    )
    assert report.question == asked
    assert 0 < html.index(asked) < html.index("<h1")
    words = html[html.index('id="words"') : html.index("<footer>")]
    for word in ("strict match", "flexible extract", "sft", "KV loss", "h (effect size)", "Holm’s correction", "r²"):
        assert f"<dt>{word}</dt><dd>" in words
    assert "<dt>mercator</dt>" in words
    assert "<dt>mse</dt>" not in words


@pytest.mark.parametrize(
    ("pairs", "asked"),
    [
        ([("flat", "sft")], "Does flat beat sft?"),
        ([("sft", "flat")], "Does flat beat sft?"),
        ([("flat", "linear"), ("linear", "sft")], "Does distilling the KV cache help, and does flat beat linear?"),
        ([("structured", "flat")], ALONE),
        ([(f"x{i}", "sft") for i in range(5)], "Which of the 5 arms beat sft?"),
        ([], ""),
    ],
)
def test_the_question_is_that_of_the_declared_pairs(
    runs: ReportInputs, pairs: list[tuple[str, str]], asked: str
) -> None:
    linear = {"aligner": {"kind": "linear"}}
    arms = runs.arms | {"linear": linear} | {f"x{i}": linear for i in range(5)}
    seeds = runs.seeds | {name: ["42"] for name in arms}
    assert question(replace(runs, arms=arms, seeds=seeds, comparisons=pairs), []) == asked


def test_few_seeds_are_called_higher_here_and_enough_that_show_it_better(report: Report) -> None:
    def reads(html: str) -> str:
        start = html.index('id="comparisons"')
        return html[start : html.index("</table>", start)]

    two = reads(render_html(report))
    assert "<b>structured higher here</b>" in two
    assert "structured better" not in two
    rows = [
        replace(row, seeds=("42", "43", "44"), seed_level=replace(row.seed_level, p_value_holm=0.01))
        for row in report.comparisons
        if row.seed_level
    ]
    assert "<b>structured better</b>" in reads(render_html(replace(report, comparisons=rows)))


def test_columns_over_seeds_are_left_out_where_there_is_one(runs: ReportInputs, report: Report) -> None:
    assert "p over seeds, Holm" in render_html(report)
    assert "p over seeds, Holm" not in render_html(build_report(runs))


def test_a_grade_is_no_alarm_and_said_to_be_of_alignment(report: Report) -> None:
    html = render_html(report)
    assert "Grade of alignment" in html
    assert "nothing of accuracy" in html
    assert ">fail<" not in html
    assert ", fail" not in html


def test_sizes_on_disk_are_decimal_and_memory_is_binary(report: Report) -> None:
    cost = render_html(report)
    cost = cost[cost.index('id="cost"') : cost.index('id="samples"')]
    assert "19.0 MB" in cost
    assert "36.5 MB" in cost
    assert "900 MiB" in cost

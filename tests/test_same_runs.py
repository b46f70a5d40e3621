"""Runs of several experiments that are one and the same, and what that leaves to compare."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from record_fixtures import recorded, trained_anew
from report_files import edit_lines

from kava.report.across import report_across
from kava.report.build import Report
from kava.report.inputs import ReportInputs
from kava.report.page.render import render_html
from kava.report.record import read_record
from kava.report.statistics.p_values import holm


@pytest.fixture(scope="module", name="again")
def second_experiment_that_changes_one_arm(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """`flat` is trained anew and better; what `structured` and `sft` depend on did not change."""

    def one_arm(planted: ReportInputs) -> None:
        trained_anew(replace(planted, runs={"flat": planted.runs["flat"]}))

    root = tmp_path_factory.mktemp("again")
    first = recorded(root / "short", "short", n=300)
    other = recorded(root / "other", "other", n=300, rates={"flat": 0.9}, edit=one_arm)
    return report_across([read_record(first), read_record(other)], "")


def test_runs_that_are_the_same_are_said_to_be_and_are_neither_tested_nor_corrected_for(again: Report) -> None:
    numbers = again.to_dict()
    rows = {(row["a"], row["b"]): row for row in numbers["comparisons"]}
    for arm in ("structured", "sft"):
        row = rows[f"other/{arm}", f"short/{arm}"]
        assert row["identical"]
        assert row["delta"] == 0
        assert {row[name] for name in ("ci95", "p_value", "p_value_holm", "minimal_detectable_effect")} == {None}
    assert rows["other/structured", "other/sft"]["same_as"] == ["short/structured", "short/sft"]
    tests = [row for row in rows.values() if not row["identical"] and row["same_as"] is None]
    assert len(tests) == 9 - 2 - 1
    assert [row["p_value_holm"] for row in tests] == pytest.approx(holm([row["p_value"] for row in tests]))
    for name in ("p_value", "p_value_holm", "minimal_detectable_effect"):
        assert rows["other/structured", "other/sft"][name] == rows["short/structured", "short/sft"][name]
    said = again.verdict.numbers[0]
    assert said.endswith("differs: other/structured and short/structured, other/sft and short/sft")
    html = render_html(again)
    assert html.count("nothing that they depend on differs; not tested") == 2
    assert "for 6 comparisons, those of the same runs left out" in html


def test_students_trained_apart_that_score_alike_are_two_students_and_are_tested(tmp_path: Path) -> None:
    alike = recorded(tmp_path, "alike", edit=trained_anew)
    numbers = report_across([read_record(recorded(tmp_path / "short", "short")), read_record(alike)], "").to_dict()
    same = [row for row in numbers["comparisons"] if row["a"].startswith("alike") and row["b"].startswith("short")]
    assert [(row["identical"], row["delta"], row["p_value"]) for row in same] == [(False, 0.0, 1.0)] * 3
    assert "no difference shown between alike/flat and short/flat" in numbers["verdict"].lower()


def test_the_same_student_that_answered_otherwise_is_tested(tmp_path: Path) -> None:
    def wrong(planted: ReportInputs) -> None:
        path = planted.runs["sft"]["42"].evaluation / "samples.jsonl"
        edit_lines(path, lambda rows: [{**rows[0], "answer": "#### other"}, *rows[1:]])

    other = recorded(tmp_path, "other", edit=wrong)
    numbers = report_across([read_record(recorded(tmp_path / "short", "short")), read_record(other)], "").to_dict()
    assert [row["identical"] for row in numbers["comparisons"][:3]] == [True, True, False]


def test_a_verdict_across_experiments_leads_with_what_differs_between_them_and_names_arms_in_full(
    again: Report,
) -> None:
    headline = again.verdict.headline
    assert again.question == "Do arms of the same name score otherwise in other than in short?"
    assert headline.startswith("other/flat scored ")
    assert " points higher than short/flat in these students, 95% interval +" in headline
    assert "with one seed this shows nothing about the arms" in headline
    unnamed = re.findall(r"(?<!/)\b(?:flat|structured|sft)\b", again.verdict.sentence)
    assert unnamed == []

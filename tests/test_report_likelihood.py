"""Likelihoods beside marks: at the floor they lead, at steps they are followed, and where they lack it is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_fixtures import job_inputs, job_spec
from report_files import edit_json, edit_lines, forget_likelihoods, write_at_steps
from report_fixtures import finished_runs

from kava.report.build import Report, build_report
from kava.report.charts.steps import step_charts
from kava.report.floor import about_zero
from kava.report.inputs import ReferenceFiles, ReportInputs, report_inputs
from kava.report.page.render import render_html
from kava.report.record import read_record
from kava.report.write import write_record
from kava.tasks import scored, task_of
from kava.tasks.metric import ANSWER_NLL, FLEXIBLE_EXTRACT, STRICT_MATCH, TEACHER_AGREEMENT

NONE_RIGHT = {"flat": 0.0, "structured": 0.0, "sft": 0.0, "base": 0.0}
# Mean NLL on validation questions, by arm and step.
CURVES = {
    "flat": {10: 4.0, 50: 3.1, 100: 2.3},
    "structured": {10: 3.6, 50: 2.6, 100: 2.0},
    "sft": {10: 4.1, 50: 3.2, 100: 2.4},
}


def evaluations(inputs: ReportInputs) -> list[Path]:
    runs = [files.evaluation for seeds in inputs.runs.values() for files in seeds.values()]
    return [*runs, inputs.teacher.evaluation, inputs.student_base.evaluation]


def with_steps(root: Path, seeds: tuple[str, ...]) -> ReportInputs:
    """Runs scored at steps, seed after seed a little better, beside a further reference."""
    inputs = finished_runs(root, n=20, seeds=seeds)
    for arm, curve in CURVES.items():
        for i, files in enumerate(inputs.runs[arm].values()):
            means = {s: {"answer_nll": v - 0.05 * i, "strict_match": 0.9 - v / 5} for s, v in curve.items()}
            write_at_steps(files.evaluation, means, pace=0.5 if arm == "sft" else 0.75)
    instruct = root / "instruct"
    shutil.copytree(inputs.teacher.evaluation, instruct)
    inputs = replace(inputs, references={"instruct": ReferenceFiles("Instruct", instruct)})
    for folder, nll in ((inputs.teacher.evaluation, 1.6), (inputs.student_base.evaluation, 9.8), (instruct, 1.9)):
        write_at_steps(folder, {0: {"answer_nll": nll, "strict_match": 0.1}})
    return inputs


@pytest.fixture(scope="module", name="stepped")
def report_at_steps(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report(with_steps(tmp_path_factory.mktemp("steps"), ("42", "43", "44")))


def lower(row: dict[str, Any], seed: int) -> dict[str, Any]:
    return {**row, "answer_nll": row["answer_nll"] - 0.2 - 0.01 * seed}


@pytest.fixture(scope="module", name="floored")
def report_at_the_floor(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """No student answers, and the structured arm's gold answers are likelier."""
    inputs = finished_runs(tmp_path_factory.mktemp("floor"), n=20, seeds=("1", "2", "3"), **NONE_RIGHT)
    for i, files in enumerate(inputs.runs["structured"].values()):
        edit_lines(files.evaluation / "samples.jsonl", lambda rows, i=i: [lower(row, i) for row in rows])
        rows = [json.loads(line) for line in (files.evaluation / "samples.jsonl").read_text().splitlines()]
        edit_json(files.evaluation / "manifest.json", answer_nll=float(np.mean([row["answer_nll"] for row in rows])))
    return build_report(inputs)


def test_what_is_scored_is_the_tasks_own_then_likelihood_and_agreement() -> None:
    assert scored(task_of("gsm8k"), True) == (STRICT_MATCH, FLEXIBLE_EXTRACT, ANSWER_NLL, TEACHER_AGREEMENT)
    assert scored(task_of("gsm8k"), False) == (ANSWER_NLL, TEACHER_AGREEMENT)
    assert scored(task_of("text"), True) == scored(task_of("text"), False) == (ANSWER_NLL, TEACHER_AGREEMENT)


def test_the_floor_is_two_in_a_hundred_or_two_answers() -> None:
    assert about_zero([(0.0, 1_000), (0.0199, 1_000)])
    assert not about_zero([(0.0, 1_000), (0.02, 1_000)])
    assert about_zero([(1 / 32, 32)])
    assert not about_zero([(2 / 32, 32)])
    assert not about_zero([(None, 32)])
    assert not about_zero([])


def test_at_the_floor_the_verdict_speaks_of_nll_with_the_same_tests(floored: Report) -> None:
    assert floored.verdict.headline.startswith("flat is not shown to beat its control; structured beats sft by 0.2")
    assert floored.verdict.caveats[0] == (
        "strict match is at its floor (the best student has 0.0%), so answer NLL is compared"
    )
    assert [metric.name for metric in floored.metrics] == [
        *("answer_nll", "strict_match", "flexible_extract", "teacher_agreement")
    ]
    row = floored.comparisons[2]
    assert (row.a, row.b, row.metric, row.winner) == ("structured", "sft", ANSWER_NLL, "structured")
    assert row.delta == pytest.approx(-0.21)
    assert row.seed_level is not None
    assert floored.samples.metrics[0] == "answer_nll"
    numbers = floored.to_dict()
    assert numbers["arms"]["structured"]["answer_nll_sd"] == pytest.approx(0.01)
    assert numbers["arms"]["structured"]["strict_match_sd"] == 0
    html = render_html(floored)
    assert "Strict match is at its floor" in html
    assert "Difference, nats per token" in html


@pytest.mark.parametrize("answering", ["structured", "base"])
def test_a_student_that_answers_leaves_accuracy_in_charge(tmp_path: Path, answering: str) -> None:
    report = build_report(finished_runs(tmp_path, n=20, seeds=("1",), **NONE_RIGHT | {answering: 0.4}))
    assert report.metrics[0] == STRICT_MATCH
    assert not any("floor" in caveat for caveat in report.verdict.caveats)


def test_evaluations_of_before_are_shown_without_likelihoods_in_one_sentence(tmp_path: Path) -> None:
    inputs = finished_runs(tmp_path, n=20, seeds=("1",), **NONE_RIGHT)
    for folder in evaluations(inputs):
        forget_likelihoods(folder)
    report = build_report(inputs)
    assert report.verdict.headline.startswith("No arm answers these questions")
    numbers = report.to_dict()
    for row in (numbers["teacher"], numbers["student_base"], numbers["arms"]["flat"]["seeds"]["1"]):
        assert row["answer_nll"] is row["teacher_agreement"] is None
        assert row["at_steps"] == {}
    html = render_html(report)
    assert html.count("Answer NLL and teacher agreement are not known of any model: an earlier version") == 1
    assert '<th scope="col" class="n">Answer NLL</th>' not in html
    assert 'id="steps"' not in html


def test_a_reference_of_before_is_named_and_the_arms_are_judged_without_it(tmp_path: Path) -> None:
    inputs = finished_runs(tmp_path, n=20, seeds=("1",), **NONE_RIGHT)
    forget_likelihoods(inputs.student_base.evaluation)
    report = build_report(inputs)
    assert report.metrics[0] == ANSWER_NLL
    assert report.unknown.startswith("Answer NLL and teacher agreement are not known of base student: ")
    assert {row.delta for row in report.against_base} == {None}
    render_html(report)


def test_agreement_that_is_null_is_null_and_no_mistake(tmp_path: Path) -> None:
    inputs = finished_runs(tmp_path, n=20, seeds=("1",))
    for folder in evaluations(inputs):
        edit_json(folder / "manifest.json", teacher_agreement=None)
        edit_lines(folder / "samples.jsonl", lambda rows: [{**row, "teacher_agreement": None} for row in rows])
    report = build_report(inputs)
    assert report.to_dict()["arms"]["flat"]["teacher_agreement_mean"] is None
    assert report.unknown == ""
    assert report.samples.metrics == ["strict_match", "flexible_extract", "answer_nll"]
    assert "Teacher agreement</th>" not in render_html(report)


def test_without_generated_answers_the_gold_ones_are_judged(tmp_path: Path) -> None:
    inputs = finished_runs(tmp_path, n=20, seeds=("1",))
    for folder in evaluations(inputs):
        marks = ("strict_match", "flexible_extract")
        edit_lines(
            folder / "samples.jsonl",
            lambda rows: [{k: v for k, v in r.items() if k not in marks} | {"answer": ""} for r in rows],  # noqa: B023
        )
    spec = job_spec(inputs, evaluation={"generate": False})
    read = report_inputs(spec, job_inputs(inputs), {})
    report = build_report(read)
    assert report.metrics == (ANSWER_NLL, TEACHER_AGREEMENT)
    assert {row.metric for row in report.comparisons} == {ANSWER_NLL}
    assert "answer NLL is 1.15" in report.verdict.sentence
    assert not any("floor" in caveat for caveat in report.verdict.caveats)
    render_html(report)


def test_scores_at_steps_stand_in_the_json_by_seed_and_as_means(stepped: Report) -> None:
    numbers = stepped.to_dict()
    arm = numbers["arms"]["structured"]
    assert arm["seeds"]["43"]["at_steps"]["50"] == {
        "strict_match": pytest.approx(0.38), "flexible_extract": None, "answer_nll": pytest.approx(2.55),
        "teacher_agreement": None, "n": 40, "seconds": 37.5,
    }  # fmt: skip
    assert arm["at_steps"]["50"]["answer_nll"] == pytest.approx(2.55)
    assert arm["at_steps"]["50"]["answer_nll_sd"] == pytest.approx(0.05)
    assert numbers["teacher"]["at_steps"]["0"]["answer_nll"] == 1.6
    assert numbers["references"]["instruct"]["at_steps"]["0"]["answer_nll"] == 1.9
    assert numbers["references"]["instruct"]["answer_nll"] == numbers["teacher"]["answer_nll"]
    saved = {(row["arm"], row["control"], row["metric"]): row["at"] for row in numbers["steps_saved"]}
    assert list(saved) == [(a, "sft", m) for m in ("strict_match", "answer_nll") for a in ("flat", "structured")]
    at = saved["structured", "sft", "answer_nll"]["100"]
    assert at["steps"] == pytest.approx(50 + 50 * 0.2 / 0.6)
    assert at["ratio"] == pytest.approx(at["steps"] / 100)
    assert at["ci95"] == pytest.approx([at["steps"]] * 2)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


def test_the_first_charts_are_of_both_metrics_by_steps_and_by_seconds(stepped: Report) -> None:
    charts = {chart.name: chart for chart in step_charts(stepped)}
    assert list(charts) == ["step-strict_match", "step-answer_nll", "seconds-strict_match", "seconds-answer_nll"]
    nll = charts["step-answer_nll"]
    assert "Answer NLL on 40 validation questions; lower is better." in nll.caption
    assert "Dashed: teacher 1.600 and instruct 1.900." in nll.caption
    # At 9.8 it would press arms of 2 to 4 into one line.
    assert nll.caption.endswith("All arms begin at the base student, 9.800, which lies outside of this scale.")
    assert charts["step-strict_match"].caption.endswith("All arms begin at the base student, 10.0%.")
    (mean,) = (row for row in nll.spec["datasets"]["means"] if row["arm"] == "flat")
    assert mean["step"] == [0, 10, 50, 100]
    assert mean["value"] == pytest.approx([9.8, 3.95, 3.05, 2.25])
    assert (mean["low"][2], mean["high"][2]) == pytest.approx((3.0, 3.1))
    assert mean["seconds"] == [0, 7.5, 37.5, 75]
    html = render_html(stepped)
    assert html.index('id="spec-step-strict_match"') < html.index('id="spec-accuracy"')
    assert "structured reaches the strict match that sft had at step 100" in html
    assert '<small class="below">67%, 67 to 67</small>' in html
    assert "<dt>steps saved</dt>" in html


def test_one_seed_is_a_line_and_is_said_to_be_one(tmp_path: Path) -> None:
    report = build_report(with_steps(tmp_path, ("7",)))
    (chart,) = (chart for chart in step_charts(report) if chart.name == "step-answer_nll")
    assert set(chart.spec["datasets"]) == {"seeds"}
    assert any(line.endswith("(one seed)") for line in report.verdict.numbers)


def test_an_arm_of_which_a_seed_lacks_scores_has_no_mean_and_saves_no_steps(tmp_path: Path) -> None:
    inputs = with_steps(tmp_path, ("1", "2"))
    edit_json(inputs.runs["flat"]["2"].evaluation / "manifest.json", at_steps={})
    report = build_report(inputs)
    assert {row.arm for row in report.steps_saved} == {"structured"}
    (chart,) = (chart for chart in step_charts(report) if chart.name == "step-answer_nll")
    assert "Without a mean, as not every seed has scores: flat." in chart.caption
    assert report.to_dict()["arms"]["flat"]["at_steps"] == {}


def test_a_record_finds_further_references_again(tmp_path: Path) -> None:
    results = tmp_path / "results"
    inputs = with_steps(results, ("42",))
    for folder in (inputs.teacher.evaluation, inputs.student_base.evaluation, results / "instruct"):
        edit_json(folder / "manifest.json", spec={"key": {"model": {"files": {}}, "evaluation": {}}})
    files = job_inputs(inputs) | {"reference/instruct": results / "instruct" / "manifest.json"}
    path = write_record(job_spec(inputs, references={"instruct": {"model": "m"}}), files, build_report(inputs))
    experiment = read_record(path.parent)
    assert experiment.record["models"]["reference/instruct"]["answer_nll"] == pytest.approx(
        experiment.record["models"]["teacher"]["answer_nll"]
    )
    read = report_inputs(experiment.record["configuration"], experiment.inputs, {})
    assert list(read.references) == ["instruct"]
    assert list(read.runs["flat"]) == ["42"]

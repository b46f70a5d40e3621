"""The first screen: whether distilling helped and by how much, then structure; and what no grade may suggest there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_files import edit_json, edit_lines, sha
from report_fixtures import finished_runs

from kava.misalignment import INERT_BEGINS, inert_sentence, is_inert
from kava.report.build import Report, build_report
from kava.report.inputs import ReportInputs
from kava.report.page.first_screen import Gain, first_screen
from kava.report.page.render import render_html
from kava.report.statistics.p_values import holm

NOTHING = {"cos_sim_centered": 0.002, "r2": 0.0, "cos_sim": 0.41, "cos_sim_constant": 0.52}
ARM = {"aligner": {"kind": "flat"}, "kv_weight": 0.1, "kv_until": 0.3, "pretrain_projector": False}


@pytest.fixture(scope="module", name="three")
def of_three_seeds(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    return finished_runs(tmp_path_factory.mktemp("three"), n=80, seeds=("1", "2", "3"))


@pytest.fixture(scope="module")
def report(three: ReportInputs) -> Report:
    return build_report(three)


@pytest.fixture(scope="module")
def numbers(report: Report) -> dict[str, Any]:
    return report.to_dict()


@pytest.fixture(name="one")
def of_one_seed(tmp_path: Path) -> ReportInputs:
    return finished_runs(tmp_path, n=40, seeds=("42",))


def marks(folder: Path) -> list[int]:
    return [json.loads(line)["strict_match"] for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_each_arm_is_measured_from_the_base_student_question_by_question(three, numbers) -> None:
    assert [row["a"] for row in numbers["against_base"]] == ["flat", "structured", "sft"]
    base = np.array(marks(three.student_base.evaluation))
    for row in numbers["against_base"]:
        own = np.mean([np.array(marks(run.evaluation)) - base for run in three.runs[row["a"]].values()])
        assert row["delta"] == pytest.approx(own)
        assert row["seeds"] == ["1", "2", "3"]


def test_it_is_corrected_for_itself_and_the_declared_comparisons_which_it_leaves_as_they_are(numbers) -> None:
    both = [*numbers["against_base"], *numbers["comparisons"]]
    stricter = holm([row["p_value"] for row in both])
    assert [row["p_value_holm"] for row in numbers["against_base"]] == pytest.approx(stricter[:3])
    declared = holm([row["p_value"] for row in numbers["comparisons"]])
    assert [row["p_value_holm"] for row in numbers["comparisons"]] == pytest.approx(declared)
    # A difference that is the same in every seed has no p, and comes first.
    over = holm([row["seed_level"]["p_value"] or 0.0 for row in both])
    for row, adjusted in zip(numbers["against_base"], over, strict=False):
        assert row["seed_level"]["p_value"] is None or row["seed_level"]["p_value_holm"] == pytest.approx(adjusted)


def test_the_page_says_first_whether_distilling_helped_then_what_structure_does(report: Report) -> None:
    html = render_html(report)
    first = html[html.index("<header>") : html.index("<nav")]
    order = [
        "Does distilling the KV cache help",
        "<h1",
        "plain fine-tuning (sft)",
        "the base student",
        "structured</span>",
    ]
    places = [first.index(said) for said in order]
    assert places == sorted(places)
    headline = report.verdict.headline
    assert headline.index("sft") < headline.index("structured") or headline.startswith("flat and structured")
    assert report.verdict.sentence.startswith(headline)
    assert report.verdict.numbers[0].startswith("measured from the base student (")
    assert not any(f">{word}<" in first for word in ("fail", "low", "pass"))


def test_its_gains_are_those_of_the_declared_comparisons_and_read_by_the_same_rules(report: Report) -> None:
    arms = list(report.arms)
    glance = first_screen(report, arms)
    assert (glance.control, [line.name for line in glance.lines]) == ("sft", ["structured", "flat", "sft"])
    row = next(row for row in report.comparisons if (row.a, row.b) == ("structured", "sft"))
    assert row.delta is not None
    assert row.ci95 is not None
    assert row.seed_level is not None
    clear = replace(row, p_value_holm=0.001, seed_level=replace(row.seed_level, p_value_holm=0.01))

    def reads(**changes: Any) -> Gain | None:
        return first_screen(replace(report, comparisons=[replace(clear, **changes)]), arms).lines[0].over_control

    better = reads()
    assert better is not None
    assert (better.delta, better.reads) == (row.delta, "better")
    low, high = row.ci95
    assert reads(a="sft", b="structured", delta=-row.delta, ci95=(-high, -low)) == better
    lower = reads(delta=-row.delta, seeds=("1",))
    assert lower is not None
    assert lower.reads == "lower in these students"
    doubtful = {"seed_level": replace(row.seed_level, p_value_holm=0.3)}
    here = "higher in these students"
    for changes, said in (({"seeds": ("1",)}, here), (doubtful, here), ({"p_value_holm": 0.3}, "no difference shown")):
        found = reads(**changes)
        assert found is not None
        assert found.reads == said
    assert reads(complete=False) is None
    assert reads(delta=None) is None


def test_an_arm_that_answered_other_questions_is_not_measured_from_the_base_student(one: ReportInputs) -> None:
    edit_json(one.student_base.evaluation / "manifest.json", questions_sha256=sha("others"))
    report = build_report(one)
    numbers = report.to_dict()
    assert {row["delta"] for row in numbers["against_base"]} == {None}
    assert "measured from" not in numbers["verdict"]
    render_html(report)


def test_a_run_without_controls_and_one_whose_arm_has_no_run_have_a_first_screen(one: ReportInputs) -> None:
    alone = replace(one, controls=[], comparisons=[], runs={name: one.runs[name] for name in ("flat", "sft")})
    report = build_report(alone)
    assert first_screen(report, list(report.arms)).control is None
    assert "Against plain fine-tuning" not in render_html(report)


@pytest.mark.parametrize(
    ("changes", "alignment", "inert"),
    [
        ({}, NOTHING, True),
        ({}, NOTHING | {"cos_sim_centered": -0.3}, True),
        ({}, NOTHING | {"cos_sim_centered": 0.1}, False),
        ({}, NOTHING | {"r2": 0.05}, False),
        ({}, NOTHING | {"r2": None, "cos_sim_centered": None}, False),
        ({}, None, False),
        ({"aligner": None}, NOTHING, False),
        ({"teacher_kv": "shuffled"}, NOTHING, False),
    ],
)
def test_a_kv_loss_is_inert_where_the_students_kv_does_not_follow(changes, alignment, inert: bool) -> None:
    assert is_inert(ARM | changes, alignment) == inert


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, ["raise kv_weight (it is 0.1)", "after 30% of the steps", "pretrain_projector: true", "mlp_ratio"], []),
        ({"kv_until": 1.0}, ["raise kv_weight"], ["kv_until"]),
        ({"kv_weight": 0.0}, ["set kv_weight above 0"], ["raise kv_weight"]),
        ({"pretrain_projector": True}, ["train_projector: true"], ["pretrain_projector: true"]),
        ({"aligner": {"kind": "structured"}}, ["kind: flat"], ["mlp_ratio"]),
    ],
)
def test_an_inert_arm_is_told_what_to_change(changes: dict[str, Any], said: list[str], unsaid: list[str]) -> None:
    sentence = inert_sentence(ARM | changes, NOTHING)
    assert "centred cosine 0.002, r2 0.000, raw cosine 0.410 where a constant scores 0.520" in sentence
    assert all(part in sentence for part in said)
    assert not any(part in sentence for part in unsaid)


@pytest.mark.parametrize(("factor", "inert"), [(1.019, True), (0.97, False)])
def test_the_report_names_an_arm_as_inert_if_its_cross_entropy_is_its_controls(
    one: ReportInputs, factor: float, inert: bool
) -> None:
    flat, control = one.runs["flat"]["42"].student, one.runs["sft"]["42"].student
    own = json.loads((flat / "manifest.json").read_text())
    carried = [inert_sentence(ARM, NOTHING), "slow alignment: the centred cosine is 0.00 at step 200, under 0.5"]
    edit_json(flat / "manifest.json", alignment=own["alignment"] | NOTHING, warnings=carried)
    ces = [json.loads(line)["ce"] for line in (control / "metrics.jsonl").read_text().splitlines()]
    edit_lines(flat / "metrics.jsonl", lambda rows: [{**r, "ce": factor * ce} for r, ce in zip(rows, ces, strict=True)])
    report = build_report(one)
    numbers = report.to_dict()
    assert numbers["inert"] == (["flat"] if inert else [])
    named = [line for line in numbers["warnings"] if INERT_BEGINS in line]
    assert len(named) == int(inert)
    assert any("slow alignment" in line for line in numbers["warnings"])
    assert ("the KV loss of flat was inert" in numbers["verdict"]) == inert
    assert ("the KV loss of flat was inert" in render_html(report)) == inert
    if inert:
        assert numbers["warnings"][0] == named[0]
        assert "as that of sft at" in named[0]


def test_without_a_control_kv_alone_says_that_an_arm_is_inert(one: ReportInputs) -> None:
    student = one.runs["flat"]["42"].student
    own = json.loads((student / "manifest.json").read_text())["alignment"]
    edit_json(student / "manifest.json", alignment=own | NOTHING)
    alone = replace(one, controls=[], comparisons=[("flat", "structured")])
    assert build_report(alone).to_dict()["inert"] == ["flat"]

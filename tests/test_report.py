"""From the files of finished runs to the numbers: the contract, and what must be said aloud."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_files import edit_json, edit_lines, sha
from report_fixtures import finished_runs, numbers_of_two_seeds, report_of_two_seeds, runs_of_one_seed  # noqa: F401

from kava.report.build import Report, build_report
from kava.report.charts.curves import loss_charts
from kava.report.inputs import ReportInputs
from kava.report.page.render import render_html

SEED_KEYS = {
    *("strict_match", "strict_match_ci95", "flexible_extract", "flexible_extract_ci95", "n"),
    *("cos_sim", "cos_sim_centered", "cos_sim_constant", "r2"),
    *("angular_distance", "alignment_accuracy", "alignment_grade", "collapsed"),
    *("answer_nll", "answer_nll_ci95", "teacher_agreement", "teacher_agreement_ci95", "at_steps"),
    *("retrieval_at_1", "mag_ratio", "train_seconds", "train_tokens", "optimizer_steps", "peak_memory_mib"),
}
ARM_KEYS = {
    "aligner",
    "loss",
    "projector_parameters",
    "strict_match_mean",
    "strict_match_ci95",
    "flexible_extract_ci95",
    "seeds",
}
COMPARISON_KEYS = {
    *("a", "b", "metric", "delta", "ci95", "p_value", "p_value_holm", "test", "mcnemar"),
    *("effect_size", "minimal_detectable_effect", "seed_level"),
}
# Of a comparison that cannot be made, none is known.
NUMBERS = (
    *("delta", "rates", "ci95", "effect_size", "difference_sd", "minimal_detectable_effect"),
    *("p_value", "p_value_holm", "seed_level", "n"),
)
STORE_KEYS = {"manifest", "tokens", "bytes", "raw_bf16_bytes", "ratio", "codec"}


def test_contract_keys_are_there(numbers: dict[str, Any]) -> None:
    assert {"experiment", "preset", "verdict", "arms", "comparisons", "stores"} <= set(numbers)
    for reference in ("teacher", "student_base"):
        assert {"model", "strict_match", "flexible_extract", "n"} <= set(numbers[reference])
    assert list(numbers["arms"]) == ["flat", "structured", "sft"]
    for arm in numbers["arms"].values():
        assert set(arm) >= ARM_KEYS
        assert list(arm["seeds"]) == ["42", "43"]
        assert all(set(row) == SEED_KEYS for row in arm["seeds"].values())
    assert len(numbers["comparisons"]) == 3
    for row in numbers["comparisons"]:
        assert set(row) >= COMPARISON_KEYS
        assert row["metric"] == "strict_match"
        assert row["test"] == "sign-flip permutation"
        assert set(row["mcnemar"]) == {"42", "43"}
    assert set(numbers["stores"]["demo"]) >= STORE_KEYS


def test_json_is_strict_and_comes_back_equal(numbers: dict[str, Any]) -> None:
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


def test_numbers_are_those_of_the_files(numbers: dict[str, Any]) -> None:
    flat, sft = numbers["arms"]["flat"], numbers["arms"]["sft"]
    assert flat["strict_match_mean"] == pytest.approx(
        (flat["seeds"]["42"]["strict_match"] + flat["seeds"]["43"]["strict_match"]) / 2
    )
    assert flat["seeds"]["42"]["train_seconds"] == pytest.approx(41.5 + 41.5)
    assert flat["seeds"]["42"]["peak_memory_mib"] == pytest.approx(900.1)
    assert flat["projector_parameters"] == 1_234_567
    assert (sft["aligner"], sft["loss"], sft["projector_parameters"]) == (None, None, None)
    assert sft["seeds"]["42"]["train_seconds"] == pytest.approx(30.25)
    assert sft["seeds"]["42"]["cos_sim"] is None
    delta = numbers["arms"]["structured"]["strict_match_mean"] - flat["strict_match_mean"]
    assert numbers["comparisons"][0]["delta"] == pytest.approx(delta)
    assert numbers["stores"]["demo"]["codec"] == "int8"
    assert numbers["fairness"]["equal"]
    assert numbers["fairness"]["mismatches"] == []
    # Two seeds: what these students did, and no claim about the arms.
    assert numbers["verdict"].startswith(
        "flat and structured scored higher than sft in these students, by 10.0 and 22.0 points; structured scored "
        "higher than flat in these students (with 2 seeds this shows nothing about the arms): "
    )


def test_size_and_fidelity_are_those_of_the_bench_file_and_the_runs_codec_is_marked(
    report: Report, numbers: dict[str, Any]
) -> None:
    codecs = numbers["fidelity"]["codecs"]
    assert list(codecs) == ["bf16", "int8", "int4", "transform-0.99", "transform-0.95"]
    assert [name for name, row in codecs.items() if row["configured"]] == ["int8"]
    assert codecs["int4"]["ratio"] == 0.218
    assert codecs["int4"]["cos_centered"] == pytest.approx(1 - 4.7e-3)
    assert codecs["int4"]["cos_centered_min"] == pytest.approx(1 - 2 * 1.2 * 4.7e-3)
    assert codecs["int4"]["loss"] == pytest.approx(4.7e-3)
    html = render_html(report)
    assert 'data-chart="spec-fidelity"' in html
    assert "h5py is not installed" in html


def test_a_lossless_codec_has_no_place_on_a_logarithmic_scale_and_is_named(runs: ReportInputs) -> None:
    assert runs.bench is not None
    figures = json.loads(runs.bench.read_text())
    figures["codecs"]["bf16"] |= {"k_rel_error": 0.0, "v_rel_error": 0.0}
    edit_json(runs.bench, **figures)
    report = build_report(runs)
    numbers = report.to_dict()
    assert numbers["fidelity"]["codecs"]["bf16"]["loss"] is None
    assert "Lossless here, so not on this scale: bf16." in render_html(report)


def test_without_a_bench_file_the_report_says_how_to_get_the_fidelity_of_codecs(runs: ReportInputs) -> None:
    report = build_report(replace(runs, bench=None))
    numbers = report.to_dict()
    assert numbers["fidelity"] is None
    html = render_html(report)
    assert "Size against fidelity" not in html
    assert "spec-fidelity" not in html
    assert html.count("report={codecs: true}") == 1


def test_same_files_give_the_same_report(runs: ReportInputs) -> None:
    assert build_report(runs) == build_report(runs)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("data_order_sha256", sha("other"), "data order differs"),
        ("initial_student_sha256", sha("other"), "initial student differs"),
        ("optimizer_steps", 399, "optimizer steps differs between arms (flat 399, structured 400, sft 400)"),
        ("train_tokens", 1, "training tokens differs"),
        ("data_order_sha256", None, "flat does not record its data order"),
    ],
)
def test_unequal_training_is_named_near_the_top(runs: ReportInputs, field: str, value: Any, said: str) -> None:
    edit_json(runs.runs["flat"]["42"].student / "manifest.json", **{field: value})
    report = build_report(runs)
    numbers = report.to_dict()
    assert any(said in line and "Seed 42" in line for line in numbers["fairness"]["mismatches"])
    html = render_html(report)
    assert html.index(said) < html.index("<main>")
    assert "the comparison is not fair as it stands: 1 mismatch" in numbers["verdict"]


def test_other_questions_are_named_also_for_the_references(runs: ReportInputs) -> None:
    edit_json(runs.teacher.evaluation / "manifest.json", questions_sha256=sha("5-shot"))
    (line,) = build_report(runs).to_dict()["fairness"]["mismatches"]
    assert "Not all models answered the same questions" in line
    assert "teacher" in line


def test_missing_samples_are_named_and_not_compared(runs: ReportInputs) -> None:
    edit_lines(runs.runs["sft"]["42"].evaluation / "samples.jsonl", lambda rows: rows[:-2])
    report = build_report(runs)
    numbers = report.to_dict()
    said = " ".join(numbers["fairness"]["mismatches"])
    assert "sft (seed 42): samples.jsonl has 58 lines, its manifest says 60." in said
    assert "Arms 'flat' and 'sft' cannot be compared" in said
    against_sft = numbers["comparisons"][1]
    assert {against_sft[key] for key in NUMBERS} == {None}
    assert numbers["comparisons"][0]["p_value_holm"] == numbers["comparisons"][0]["p_value"]
    assert "not comparable" in render_html(report)


def test_manifest_that_contradicts_its_samples_is_named(runs: ReportInputs) -> None:
    edit_json(runs.runs["flat"]["42"].evaluation / "manifest.json", strict_match=0.99)
    assert any("0.9900 in its manifest" in line for line in build_report(runs).to_dict()["fairness"]["mismatches"])


def test_missing_seed_is_named_and_no_mean_is_taken_over_the_others(tmp_path: Path) -> None:
    inputs = finished_runs(tmp_path, n=40)
    only = {**inputs.runs, "flat": {"42": inputs.runs["flat"]["42"]}}
    report = build_report(replace(inputs, runs=only))
    numbers = report.to_dict()
    (line,) = numbers["fairness"]["mismatches"]
    assert line.startswith("Seed 43: no finished run of flat; a mean over the other seeds alone is left out")
    assert numbers["arms"]["flat"]["strict_match_mean"] is None
    assert numbers["arms"]["flat"]["seeds"]["42"]["strict_match"] is not None
    assert numbers["arms"]["structured"]["strict_match_mean"] is not None
    assert numbers["comparisons"][0]["seeds"] == ["42"]
    assert [row["complete"] for row in numbers["comparisons"]] == [False, False, True]
    flat = numbers["arms"]["flat"]
    assert flat["missing_seeds"] == ["43"]
    assert flat["alignment"]["cos_sim_centered"] is flat["alignment"]["grade"] is None
    assert set(flat["alignment"]["per_head"].values()) == {None}
    assert set(numbers["cost_mean"]["flat"].values()) == {None}
    assert numbers["cost_mean"]["structured"]["train_seconds"] == 2 * 41.5
    for bins in numbers["breakdown"].values():
        assert {row["arms"]["flat"]["rate"] for row in bins} == {None}
    for chart in loss_charts(report):
        assert "flat" not in [row["arm"] for row in chart.spec["datasets"]["means"]]
    assert "is –" not in numbers["verdict"]
    assert " over seed 42, a difference of" in numbers["verdict"]
    render_html(report)


def test_arm_without_any_run_is_named_and_shown_empty(runs: ReportInputs) -> None:
    report = build_report(replace(runs, runs={k: v for k, v in runs.runs.items() if k != "flat"}))
    numbers = report.to_dict()
    assert numbers["fairness"]["mismatches"][0].startswith("Seed 42: no finished run of flat;")
    assert numbers["arms"]["flat"]["strict_match_mean"] is None
    render_html(report)


def test_nan_becomes_null_and_a_warning(runs: ReportInputs) -> None:
    student = runs.runs["flat"]["42"].student
    alignment = json.loads((student / "manifest.json").read_text())["alignment"]
    edit_json(student / "manifest.json", alignment={**alignment, "mag_ratio": float("nan")})
    edit_lines(student / "metrics.jsonl", lambda rows: [{**row, "kv": float("inf")} for row in rows])
    report = build_report(runs)
    numbers = report.to_dict()
    json.dumps(numbers, allow_nan=False)
    assert numbers["arms"]["flat"]["seeds"]["42"]["mag_ratio"] is None
    assert any("alignment.mag_ratio is not a finite number" in line for line in numbers["warnings"])
    assert any("flat (seed 42, distill): kv was not a finite" in line for line in numbers["warnings"])
    render_html(report)


def test_failed_evaluation_is_not_averaged_over(tmp_path: Path) -> None:
    inputs = finished_runs(tmp_path, n=40)
    edit_json(inputs.runs["flat"]["43"].evaluation / "manifest.json", strict_match=float("nan"))
    report = build_report(inputs)
    numbers = report.to_dict()
    assert numbers["arms"]["flat"]["strict_match_mean"] is None
    assert numbers["arms"]["flat"]["strict_match_ci95"] is None
    render_html(report)


def test_an_arm_whose_projector_was_not_pretrained_is_reported_like_any_other(runs: ReportInputs) -> None:
    projector = runs.runs["structured"]["42"].projector
    assert projector is not None
    edit_lines(projector / "metrics.jsonl", lambda _: [])
    edit_json(projector / "cost.json", seconds=0.0)
    report = build_report(runs)
    numbers = report.to_dict()
    assert numbers["cost"]["structured"]["42"]["pretrain_seconds"] == 0
    assert numbers["arms"]["structured"]["seeds"]["42"]["train_seconds"] == pytest.approx(41.5)
    assert {row["arm"] for row in numbers["curves"] if row["stage"] == "pretrain"} == {"flat"}
    assert 'data-value="0.0">0.0 s</td>' in render_html(report)


def test_a_sample_without_its_doc_id_is_refused_with_its_line(runs: ReportInputs) -> None:
    path = runs.runs["sft"]["42"].evaluation / "samples.jsonl"
    edit_lines(path, lambda rows: [rows[0], {k: v for k, v in rows[1].items() if k != "doc_id"}, *rows[2:]])
    with pytest.raises(ValueError, match=r"samples.jsonl, line 2, has no doc_id; rerun the evaluation"):
        build_report(runs)


def test_long_logs_are_thinned_to_what_a_chart_shows(runs: ReportInputs) -> None:
    path = runs.runs["sft"]["42"].student / "metrics.jsonl"
    edit_lines(path, lambda rows: [{**rows[0], "step": step} for step in range(1, 5_001)])
    steps = [row["step"] for row in build_report(runs).to_dict()["curves"] if row["arm"] == "sft"]
    assert (len(steps), steps[0], steps[-1]) == (200, 1, 5_000)


def test_names_that_no_arm_has_are_refused(runs: ReportInputs) -> None:
    with pytest.raises(ValueError, match=r"does not have: strctured.*flat, structured, sft"):
        replace(runs, comparisons=[("strctured", "flat")])


def test_unscored_question_is_refused_with_its_place(runs: ReportInputs) -> None:
    path = runs.runs["sft"]["42"].evaluation / "samples.jsonl"
    edit_lines(path, lambda rows: [{**rows[0], "strict_match": None}, *rows[1:]])
    with pytest.raises(ValueError, match=r"samples.jsonl, doc_id 0: strict_match is None"):
        build_report(runs)

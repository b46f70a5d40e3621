"""What must be equal, clean and complete before a comparison means anything, and who says so where it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_files import edit_json, write_tokens
from report_fixtures import runs_of_one_seed  # noqa: F401

from kava.data.overlap import find_overlap
from kava.report.build import build_report
from kava.report.inputs import ReportInputs
from kava.report.overlap import check_overlap
from kava.report.page.render import render_html

TRAINING = [
    "Tom has 3 apples. He buys 4 more. How many apples does Tom have now?",
    "A train of 12 waggons leaves at noon. How many wheels has it, with 8 on each?",
]
APART = ["Ines reads 12 pages a day. How long does she need for 144 pages?"]
SAME = "TOM has 3 apples; he buys 4 more. How many apples does Tom have now"
ALIKE = "Mia has 5 shells. Tom gives 4 more. How many apples does Tom have now?"


def test_a_test_without_training_questions_is_said_to_be_clean(runs: ReportInputs, tmp_path: Path) -> None:
    report = build_report(replace(runs, tokens={"demo": write_tokens(tmp_path, TRAINING, APART)}))
    numbers = report.to_dict()
    assert numbers["fairness"]["overlap"]["demo"]["questions"] == 1
    assert numbers["fairness"]["equal"]
    assert numbers["warnings"] == []
    html = render_html(report)
    assert "none of which stands in the training data or shares 8 words in a row with a question there" in html


def test_test_questions_that_were_trained_on_are_a_mismatch_and_named(runs: ReportInputs, tmp_path: Path) -> None:
    report = build_report(replace(runs, tokens={"demo": write_tokens(tmp_path, TRAINING, [*APART, SAME])}))
    numbers = report.to_dict()
    (line,) = numbers["fairness"]["mismatches"]
    assert line == (
        "1 of 2 test questions stands in the training data, but for case, spaces and punctuation "
        "(doc_id 1 is train row 0)."
    )
    assert "the comparison is not fair as it stands: 1 mismatch" in numbers["verdict"]
    html = render_html(report)
    assert html.index('role="alert"') < html.index(line) < html.index("<main>")
    assert "none of which stands" not in html


def test_phrases_in_common_are_a_note_and_no_mismatch(runs: ReportInputs, tmp_path: Path) -> None:
    tokens = {"demo": write_tokens(tmp_path, TRAINING, [*APART, ALIKE, *[ALIKE] * 5])}
    report = build_report(replace(runs, tokens=tokens))
    numbers = report.to_dict()
    assert numbers["fairness"]["mismatches"] == []
    (line,) = numbers["fairness"]["notes"]
    assert line.startswith(
        "6 of 7 test questions share 8 words in a row with a training question (doc_id 1 “4 more how"
    )
    assert ", 0 of them at least 70% of all such runs" in line
    assert numbers["warnings"] == []
    html = render_html(report)
    # No warning, so not at the top.
    assert html.index(line.split(" (")[0]) > html.index('id="provenance"')
    assert "none of which stands in the training data.</p>" in html


def test_a_token_set_that_records_no_overlap_is_said_to_record_none(runs: ReportInputs, tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path)
    edit_json(manifest, overlap=None)
    for tokens, found in (({"demo": manifest}, {"demo": None}), ({}, {})):
        report = build_report(replace(runs, tokens=tokens))
        numbers = report.to_dict()
        assert numbers["fairness"]["overlap"] == found
        assert "is not recorded in the token set's manifest; `kava tokenize` adds it" in numbers["warnings"][0]
        assert "none of which stands" not in render_html(report)


def test_what_a_token_set_says_of_its_rows_is_a_notice(runs: ReportInputs, tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path, TRAINING, APART)
    edit_json(manifest, warnings=["train: 4 of 9 answers are spelled anew."])
    report = build_report(replace(runs, tokens={"demo": manifest}))
    numbers = report.to_dict()
    assert numbers["warnings"] == ["train: 4 of 9 answers are spelled anew."]
    assert "train: 4 of 9 answers are spelled anew." in render_html(report)


def test_other_settings_of_an_evaluation_are_a_mismatch_but_for_the_batch_size(runs: ReportInputs) -> None:
    def evaluated(**settings: int) -> list[str]:
        manifest = runs.runs["flat"]["42"].evaluation / "manifest.json"
        edit_json(manifest, spec={"key": {"evaluation": {"batch_size": 16, "max_new_tokens": 256} | settings}})
        mismatches: list[str] = build_report(runs).to_dict()["fairness"]["mismatches"]
        return mismatches

    assert evaluated(batch_size=1) == []
    (line,) = evaluated(max_new_tokens=8)
    assert "not all models were evaluated with the same settings" in line.lower()
    assert "max_new_tokens 8: flat (seed 42)" in line


@pytest.mark.parametrize("missing", ["evaluation/manifest.json", "evaluation/samples.jsonl", "student/metrics.jsonl"])
def test_a_run_whose_files_are_gone_is_refused_with_the_file(runs: ReportInputs, missing: str) -> None:
    """The stage refuses before, by the names of its inputs; a report never fills in for a run."""
    file = runs.runs["flat"]["42"].student.parent / missing
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"flat/seed-42/{missing}"):
        build_report(runs)


def test_accuracies_that_are_not_finite_are_in_no_mean(runs: ReportInputs) -> None:
    edit_json(runs.teacher.evaluation / "manifest.json", strict_match=float("nan"))
    report = build_report(runs)
    numbers = report.to_dict()
    assert numbers["teacher"]["strict_match"] is numbers["teacher"]["strict_match_ci95"] is None
    assert any("strict_match is not a finite number" in line for line in numbers["warnings"])
    json.dumps(report.to_dict(), allow_nan=False)
    render_html(report)


def test_token_sets_of_several_experiments_are_each_checked_and_named_where_they_differ() -> None:
    def found(*test: str) -> dict[str, Any]:
        rows = {"train": TRAINING, "validation": [], "test": test}
        return {
            "overlap": find_overlap({split: [{"question": text} for text in texts] for split, texts in rows.items()})
        }

    both = check_overlap({"a": found(SAME), "b": found(SAME)})
    (line,) = both.mismatches
    assert line.startswith("1 of 1 test questions stands in the training data")
    apart = check_overlap({"a": found(SAME), "b": found(SAME), "c": found(*APART, SAME), "d": {}})
    assert [line.split(" test")[0] for line in apart.mismatches] == ["a and b: 1 of 1", "c: 1 of 2"]
    assert [line.split(" Whether")[0] for line in apart.warnings] == ["d:"]
    assert apart.found["d"] is None

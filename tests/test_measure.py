"""A new metric measures finished students anew, and trains nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kava.config import Jobs, jobs, load_config
from kava.files import read_json, write_json
from kava.report.evaluated import Evaluation
from kava.report.finished import FinishedRun, Training, read_training
from kava.report.notices import metrics_warnings
from kava.stages import distill, extract, measure, pretrain, tokenize

SETTINGS: dict[str, Any] = {
    "data": {"train": 12, "validation": 4, "test": 2},
    "kv": {"shard_tokens": 2048},
    "arms": {"flat": {"aligner": {"kind": "flat"}, "kv_until": 1.0}, "structured": None},
    "distill": {"steps": 2, "log_every": 1, "batch_size": 2},
    "seeds": [3],
}
ARM = ["--arm", "flat", "--seed", "3"]


@pytest.fixture(name="plan")
def finished_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(json.dumps({"preset": "demo", **SETTINGS}), encoding="utf-8")
    for stage, options in ((tokenize, []), (extract, []), (pretrain, ARM), (distill, ARM)):
        assert stage.main(options) == 0
    return Jobs(load_config())


@pytest.mark.slow
def test_other_metrics_plan_the_measuring_alone_and_the_report_reads_what_it_finds(
    plan: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, student = plan.report.inputs, plan.distill("flat", 3).output
    assert "flat/seed-3/alignment" not in before
    former, manifest = read_training(student.parent, []), read_json(student)
    trained = plan.distill("flat", 3).params, plan.pretrain("flat", 3).params

    monkeypatch.setattr(jobs, "metrics_digest", lambda: "of other metrics")
    later = Jobs(plan.config)
    assert later.report.inputs == before | {"flat/seed-3/alignment": later.measure("flat", 3).output}
    assert (later.distill("flat", 3).params, later.pretrain("flat", 3).params) == trained
    assert measure.main(ARM) == 0
    anew = read_json(student.with_name("alignment.json"))
    assert anew["alignment"] == manifest["alignment"], "it is the same formula, on the student as it was saved"
    assert anew["measured"]["warnings"] == manifest["measured"]["warnings"] != []

    write_json(student.with_name("alignment.json"), anew | {"alignment": {"r2": 0.5}})
    run = read_training(student.parent, [])
    assert run.alignment is not None
    assert (run.alignment.r2, run.alignment.cos_sim) == (0.5, None)
    assert run.warnings == former.warnings
    assert metrics_warnings({"flat": {"3": _run(run)}}) == []
    (sentence,) = metrics_warnings({"flat": {"3": _run(run)}, "older": {"3": _run(former)}})
    assert "measured by other metrics in flat than in older" in sentence

    write_json(student, manifest | {"spec": {}})  # trained anew, in the meantime or by this run
    assert read_training(student.parent, []).alignment == former.alignment
    assert "flat/seed-3/alignment" not in Jobs(plan.config).report.inputs


def _run(distilled: Training) -> FinishedRun:
    return FinishedRun(None, distilled, Evaluation({}, 0, {}, 0, None, {}))

"""A new metric measures finished students anew, and trains nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kava.report.read import Evaluation, Run, Training, read_student

from kava.config import Jobs, jobs, load_config
from kava.files import read_json, write_json
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
    former = read_student(student.parent, [])
    trained = plan.distill("flat", 3).params, plan.pretrain("flat", 3).params

    monkeypatch.setattr(jobs, "metrics_digest", lambda: "of other metrics")
    anew = Jobs(plan.config)
    assert anew.report.inputs == before | {"flat/seed-3/alignment": anew.measure("flat", 3).output}
    assert (anew.distill("flat", 3).params, anew.pretrain("flat", 3).params) == trained
    assert measure.main(ARM) == 0
    found = read_json(student.with_name("alignment.json"))
    assert found["alignment"] == former.manifest["alignment"], "it is the same formula, on the student as it was saved"
    assert found["measured"]["warnings"] == former.manifest["measured"]["warnings"] != []

    write_json(student.with_name("alignment.json"), found | {"alignment": {"r2": 0.5}})
    run = read_student(student.parent, [])
    assert run.manifest["alignment"] == {"r2": 0.5}
    assert run.manifest["warnings"] == former.manifest["warnings"]
    assert metrics_warnings({"flat": {"3": _run(run)}}) == []
    (sentence,) = metrics_warnings({"flat": {"3": _run(run)}, "older": {"3": _run(former)}})
    assert "measured by other metrics in flat than in older" in sentence

    write_json(student, read_json(student) | {"spec": {}})  # trained anew, in the meantime or by this run
    assert read_student(student.parent, []).manifest["alignment"] == former.manifest["alignment"]
    assert "flat/seed-3/alignment" not in Jobs(plan.config).report.inputs


def _run(distilled: Training) -> Run:
    return Run(None, distilled, Evaluation({}, {}, {}, 0))

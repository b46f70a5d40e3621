"""A spec is the same after its way through `--spec`, and settings that say how a stage runs are in none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from job_fixtures import all_jobs, settings_of_a_run  # noqa: F401

from kava.config import Config, load_config
from kava.config.load import PRESETS, merge
from kava.config.specs import SPECS, DistillSpec, ReportSpec
from kava.files import canonical_json

LATER: dict[str, Any] = {
    "chat": {"system": "Be brief."},
    "data": {"answers": "teacher"},
    "teacher": {"double_quantization": False},
    "student": {"lora": {}},
    "kv": {"signals": {"topk_logits": 8, "importance": {"kind": "rkv_window"}}},
}


@pytest.mark.parametrize("change", [{}, LATER], ids=["", "with what came later"])
def test_what_a_stage_parses_is_what_its_job_holds(change: dict[str, Any], base: dict[str, Any]) -> None:
    jobs = all_jobs(Config.model_validate(merge(base, change)))
    assert {job.stage for job in jobs.values()} == SPECS.keys() - {"measure", *([] if change else ["write"])}
    for job in jobs.values():
        spec = SPECS[job.stage].model_validate(json.loads(job.params))
        assert canonical_json(spec.model_dump()) == job.params
        assert type(spec) is type(job.spec)


def test_no_spec_of_training_says_how_it_runs_and_the_report_records_it(base: dict[str, Any]) -> None:
    jobs = all_jobs(Config.model_validate(merge(base, {"distill": {"save_every": 7}, "vram_budget_gib": 6})))
    distill, report = jobs["distill a", 1].spec, jobs["report", None].spec
    assert isinstance(distill, DistillSpec)
    assert isinstance(report, ReportSpec)
    assert "save_every" not in distill.model_dump()["distill"]
    assert report.model_dump()["distill"]["save_every"] == 7
    assert not report.how() & report.model_dump().keys()


@pytest.mark.parametrize("preset", [path.stem for path in PRESETS.glob("demo*.yaml")])
def test_every_demo_has_specs(preset: str) -> None:
    assert all_jobs(load_config(None, {"preset": preset}))

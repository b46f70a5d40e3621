"""Finished experiments with planted numbers and the record that their report wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report_files import EVALUATED, edit_json, sha
from report_fixtures import finished_runs

from kava.report.build import build_report
from kava.report.inputs import ReportInputs
from kava.report.write import write_record

# 2026-11-21 14:44:10 UTC
FINISHED = 1_795_272_250


def job_inputs(planted: ReportInputs) -> dict[str, Path]:
    """The files of planted runs as a report's job names them."""
    (store,) = planted.stores.values()
    assert planted.bench is not None
    references = {"teacher": planted.teacher, "student_base": planted.student_base}
    (tokens,) = planted.tokens.values()
    inputs = {"store": store, "bench": planted.bench, "tokens": tokens}
    inputs |= {role: files.evaluation / "manifest.json" for role, files in references.items()}
    for arm, seeds in planted.runs.items():
        for seed, run in seeds.items():
            parts = {"projector": run.projector, "student": run.student, "evaluation": run.evaluation}
            inputs |= {f"{arm}/seed-{seed}/{part}": path / "manifest.json" for part, path in parts.items() if path}
    return inputs


def job_spec(planted: ReportInputs, **settings: Any) -> dict[str, Any]:
    """What the report of planted runs depends on."""
    return {
        "experiment": planted.experiment,
        "preset": planted.preset,
        "notes": "",
        "arms": planted.arms,
        "comparisons": [list(pair) for pair in planted.comparisons],
        "controls": planted.controls,
        "seeds": sorted({int(seed) for seeds in planted.seeds.values() for seed in seeds}),
        "data": {"kind": "demo"},
        "teacher": {"model": "/models/of/mine/big"},
        "distill": {"steps": 400},
    } | settings


def recorded(
    root: Path,
    name: str,
    n: int = 60,
    rates: dict[str, float] | None = None,
    seeds: tuple[str, ...] = ("42",),
    edit: Callable[[ReportInputs], None] = lambda _: None,
    **settings: Any,
) -> Path:
    """Three arms as results/<name> under `root`, with their record; `settings` are the configuration's.

    `edit` changes what the stages left before the report is made.
    """
    results = root / "results"
    planted = finished_runs(results, n=n, seeds=seeds, **(rates or {}))
    model = {"key": {"model": {"files": {}}, "evaluation": EVALUATED}}
    for reference in (planted.teacher, planted.student_base):
        edit_json(reference.evaluation / "manifest.json", model=reference.model, spec=model)
    edit(planted)
    record(planted, **settings)
    return (results / "demo").rename(results / name)


def record(planted: ReportInputs, **settings: Any) -> Path:
    """Write the record of planted runs as their report does, all evaluated by `FINISHED`."""
    inputs = job_inputs(planted)
    for age, path in enumerate(path for name, path in inputs.items() if name.endswith("/evaluation")):
        os.utime(path, (FINISHED - age, FINISHED - age))
    report = build_report(planted)
    return write_record(job_spec(planted, **settings), inputs, report)


def trained_anew(planted: ReportInputs) -> None:
    """Other students than those of other experiments, whatever they answered."""
    for arm, seeds in planted.runs.items():
        for seed, run in seeds.items():
            edit_json(run.student / "manifest.json", files={"model.safetensors": sha(f"{run.student}{arm}{seed}")})

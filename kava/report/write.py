"""Write the report of one experiment: page, numbers and record."""

import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from kava.config.job import Job, Runtime
from kava.config.specs import ReportSpec
from kava.files import read_json, sha256_file, write_atomic, write_json
from kava.provenance import provenance
from kava.report.build import Report, build_report
from kava.report.clean import jsonable
from kava.report.inputs import REFERENCE, is_run, report_inputs
from kava.report.page.render import render_html
from kava.report.record import FILE, FORMAT, without_places
from kava.report.record_schema import REFERENCES
from kava.report.results import ReferenceRow

HEADING = (
    "# Written by `kava report`; `notes` is a setting. Of files, `path` is relative to the folder of this one,\n"
    "# `cache` to $KAVA_CACHE or else to the folder above it.\n"
)

log = logging.getLogger("kava")


def run(job: Job[ReportSpec], runtime: Runtime) -> None:
    """Write `ab_report.html`, `ab_report.json` and the experiment's `record.yaml`."""
    del runtime
    spec = job.spec.model_dump(mode="json")
    report = build_report(report_inputs(spec, job.inputs, provenance(job.inputs["store"])))
    write_json(job.output.with_suffix(".json"), report.to_dict())
    record = write_record(spec, job.inputs, report)
    write_atomic(job.output, render_html(report))
    log.info("%s", report.verdict.sentence)
    log.info("%s, %s", job.output, record)


def write_record(spec: Mapping[str, Any], inputs: Mapping[str, Path], report: Report) -> Path:
    """Write the record beside the arms, atomically, and return its path.

    Equal files give equal bytes: the date is the time at which the last arm's evaluation ended (the newest of their
    manifests), not that of writing. `report_made_with` is what the report's own process ran on; the stages may have run
    elsewhere.

    Parameters
    ----------
    spec, inputs
        As for `kava.report.inputs.report_inputs`.
    report
        What `build_report` made of them.
    """
    evaluations = [path for name, path in inputs.items() if is_run(name) and name.endswith("/evaluation")]
    folder = evaluations[0].parents[3]
    models = dict(zip(REFERENCES, (report.teacher, report.student_base), strict=True))
    models |= {f"{REFERENCE}{name}": row for name, row in report.references.items()}
    record = {
        "format": FORMAT,
        "name": spec["experiment"],
        "date": _time(max(path.stat().st_mtime for path in evaluations)),
        "notes": spec["notes"],
        "verdict": report.verdict.sentence,
        **_provenance(report.provenance),
        "models": {role: _model(row, inputs[role]) for role, row in models.items()},
        "questions_sha256": sorted({str(read_json(path).get("questions_sha256")) for path in evaluations}),
        "results": {arm: _result(arm, report) for arm in report.arms},
        "comparisons": report.comparisons,
        "fairness": report.fairness,
        "configuration": without_places(spec),
        "files": dict(_places(folder, inputs)),
    }
    # Plain: no tuples, which YAML's safe form does not know, and no object twice, which it would abbreviate.
    text = yaml.safe_dump(jsonable(record), sort_keys=False, allow_unicode=True, width=120)
    write_atomic(folder / FILE, HEADING + text)
    return folder / FILE


def _places(folder: Path, inputs: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each file lies, in words that hold on other machines, and its hash."""
    cache = inputs["tokens"].parents[2]
    for name, path in inputs.items():
        kind, root = ("path", folder) if is_run(name) else ("cache", cache)
        yield name, {kind: path.relative_to(root).as_posix(), "sha256": sha256_file(path)}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _provenance(given: Mapping[str, Any]) -> dict[str, Any]:
    """All but the command, which says how the report was made this time."""
    made_with = {name: given.get(name) for name in ("hardware", "code", "versions")}
    return {"report_made_with": made_with, **{name: given.get(name) for name in ("data", "tokenizer")}}


def _model(row: ReferenceRow, manifest: Path) -> dict[str, Any]:
    """Name, identity (a revision, or hashes of files) and scores of a model that was not trained here."""
    identity = read_json(manifest)["spec"].get("key", {}).get("model", {})
    scores = {name: score.mean for name, score in row.scores.items()}
    return {"model": row.model, **identity, **scores, "n": row.n, **row.intervals()}


def _result(arm: str, report: Report) -> dict[str, Any]:
    """An arm's row of the report, with its cost, without values by head."""
    row, cost = report.arms[arm].to_dict(), report.cost_mean[arm]
    alignment = report.arms[arm].alignment
    means = alignment and {**alignment.means, "grade": alignment.grade, "collapsed": alignment.collapsed}
    return {
        **{name: value for name, value in row.items() if name not in ("alignment", "at_steps", "seeds")},
        "control": arm in report.controls,
        "train_seconds": cost.train_seconds,
        "peak_memory_mib": cost.peak_memory_mib,
        "alignment": means,
        "seeds": row["seeds"],
    }

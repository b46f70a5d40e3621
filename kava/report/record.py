"""The experiment record, results/<experiment>/record.yaml: what an experiment was and found, filled in by its report.

It names every file that its report read, so that `kava report` finds them again when the folder was renamed or the
checkout moved: those of runs relative to its own folder, those that experiments may share relative to the cache. Each
has its SHA-256, since the numbers of a run that was made again are not those of the configuration told here.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kava.config.base import CACHE_VARIABLE, cache_from_environment
from kava.errors import UserError
from kava.files import read_json, sha256_file, write_atomic
from kava.report.build import Report
from kava.report.clean import jsonable
from kava.report.record_schema import REFERENCES, Place, Record
from kava.report.results import ReferenceRow
from kava.tasks.metric import Metric

FILE = "record.yaml"
FORMAT = 1
HEADING = (
    "# Written by `kava report`; `notes` is a setting. Of files, `path` is relative to the folder of this one,\n"
    "# `cache` to $KAVA_CACHE or else to the folder above it.\n"
)
AGAIN = (
    "the `snakemake` command of its run and `--forcerun report` (with all of its --config: other settings would train "
    "its arms anew; `-n` tells before)"
)
# Settings that may be a path.
PLACES = (("teacher", "model"), ("student", "model"), ("data", "path"))


@dataclass(frozen=True)
class Experiment:
    """A finished experiment, as its record tells.

    Attributes
    ----------
    folder
        As given.
    record
        What the file holds.
    inputs
        What its report read, by name, relative to the working folder.
    """

    folder: Path
    record: dict[str, Any]
    inputs: dict[str, Path]


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
    evaluations = [path for name, path in inputs.items() if name.endswith("/evaluation")]
    folder = evaluations[0].parents[3]
    record = {
        "format": FORMAT,
        "name": spec["experiment"],
        "date": _time(max(path.stat().st_mtime for path in evaluations)),
        "notes": spec["notes"],
        "verdict": report.verdict.sentence,
        **_provenance(report.provenance),
        "models": {
            role: _model(row, report.metrics[0], inputs[role])
            for role, row in zip(REFERENCES, (report.teacher, report.student_base), strict=True)
        },
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


def read_record(folder: Path) -> Experiment:
    """Read the record of an experiment's folder, and find its files.

    Raises
    ------
    UserError
        As `record_as_written`, or a file that it names is gone or was made again.
    """
    record, checked = record_as_written(folder)
    return Experiment(folder, record, {name: _find(folder / FILE, place) for name, place in checked.files.items()})


def record_as_written(folder: Path) -> tuple[dict[str, Any], Record]:
    """The record of an experiment's folder as it stands, and what of it was checked; its files are not looked at.

    Raises
    ------
    UserError
        There is no record, or it is damaged or of another format.
    """
    path = folder / FILE
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} has no {FILE}; give the folder of a finished experiment, results/<experiment>, whose report "
            f"writes it ({AGAIN})"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid YAML ({error}); make the experiment's report again with {AGAIN}"
        ) from None
    told = record.get("format") if isinstance(record, dict) else None
    if told != FORMAT:
        raise UserError(
            f"{path} has format {told!r}, and this version reads {FORMAT}; make its report again with {AGAIN}"
        )
    try:
        return record, Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(f"{path}: {where}{first['msg']}; make the experiment's report again with {AGAIN}") from None


def _places(folder: Path, inputs: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each file lies, in words that hold on other machines, and its hash."""
    cache = inputs["tokens"].parents[2]
    for name, path in inputs.items():
        kind, root = ("path", folder) if "/seed-" in name else ("cache", cache)
        yield name, {kind: path.relative_to(root).as_posix(), "sha256": sha256_file(path)}


def _find(record: Path, place: Place) -> Path:
    """The file that a record names, relative to the working folder."""
    own = os.path.abspath(record.parent)
    if place.cache is not None:
        # Content keys name what is there, so either cache may have it.
        shared = cache_from_environment()
        roots = [shared] if shared else []
        roots.append(os.path.dirname(own))
        remedy = f"set {CACHE_VARIABLE} to the cache_dir of the run, or run the experiment again: what is there is kept"
    else:
        roots = [own]
        remedy = "restore it, or run the experiment again: what is there is kept"
    possible = [Path(os.path.relpath(os.path.join(root, place.cache or place.path or ""))) for root in roots]
    existing = [path for path in possible if path.is_file()]
    if not existing:
        raise UserError(f"{record} names {' or '.join(map(str, possible))}, which does not exist; {remedy}")
    same = next((path for path in existing if sha256_file(path) == place.sha256), None)
    if same is None:
        raise UserError(f"{existing[0]} was made after its record, {record}; make its report again with {AGAIN}")
    return same


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _provenance(told: Mapping[str, Any]) -> dict[str, Any]:
    """All but the command, which says how the report was made this time."""
    made_with = {name: told.get(name) for name in ("hardware", "code", "versions")}
    return {"report_made_with": made_with, **{name: told.get(name) for name in ("data", "tokenizer")}}


def _model(row: ReferenceRow, primary: Metric, manifest: Path) -> dict[str, Any]:
    """Name, identity (a revision, or hashes of files) and scores of a model that was not trained here."""
    identity = read_json(manifest)["spec"].get("key", {}).get("model", {})
    scores = {name: score.mean for name, score in row.scores.items()}
    return {"model": row.model, **identity, **scores, "n": row.n, f"{primary.name}_ci95": row.primary.ci95}


def _result(arm: str, report: Report) -> dict[str, Any]:
    """An arm's row of the report, with its cost, without values by head."""
    row, cost = report.arms[arm].to_dict(), report.cost_mean[arm]
    alignment = report.arms[arm].alignment
    means = alignment and {**alignment.means, "grade": alignment.grade, "collapsed": alignment.collapsed}
    return {
        **{name: value for name, value in row.items() if name not in ("alignment", "seeds")},
        "control": arm in report.controls,
        "train_seconds": cost.train_seconds,
        "peak_memory_mib": cost.peak_memory_mib,
        "alignment": means,
        "seeds": row["seeds"],
    }


def without_places(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the last part of each path alone, since a record is shared and a machine is not.

    The same model, given by another path, is no difference between experiments. The id of a hub stays whole.
    """
    shown: dict[str, Any] = json.loads(json.dumps(spec))
    for section, setting in PLACES:
        value = shown.get(section, {}).get(setting)
        if value and (Path(value).is_absolute() or Path(value).is_dir()):
            shown[section][setting] = os.path.basename(os.path.abspath(value))
    return shown

"""The experiment record, results/<experiment>/record.yaml: what an experiment was and found, filled in by its report.

It names every file that its report read, relative to its own folder, so that `kava report` finds them again when the
folder was renamed or the checkout moved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from kava.errors import UserError
from kava.files import read_json, write_atomic

FILE = "record.yaml"
FORMAT = 1
HEADING = "# Written by `kava report`; `notes` is a setting. Files are relative to the folder of this one.\n"
REFERENCES = ("teacher", "student_base")
# Settings that may be a path.
PLACES = (("teacher", "model"), ("student", "model"), ("data", "path"))
SCORES = ("strict_match", "flexible_extract", "n", "strict_match_ci95")


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


def write_record(spec: Mapping[str, Any], inputs: Mapping[str, Path], report: Mapping[str, Any]) -> Path:
    """Write the record beside the arms, atomically, and return its path.

    Equal files give equal bytes: the date is the time at which the last arm's evaluation ended (the newest of their
    manifests), not that of writing. Hardware and versions are those of the report's own process.

    Parameters
    ----------
    spec, inputs
        As for `kava.report.sources.report_inputs`.
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
        "verdict": report["verdict"],
        **_provenance(report["provenance"]),
        "models": {role: _model(report[role], inputs[role]) for role in REFERENCES},
        "questions_sha256": sorted({str(read_json(path).get("questions_sha256")) for path in evaluations}),
        "results": {arm: _result(arm, report) for arm in report["arms"]},
        "comparisons": report["comparisons"],
        "fairness": report["fairness"],
        "configuration": _without_places(spec),
        "files": {name: Path(os.path.relpath(path, folder)).as_posix() for name, path in inputs.items()},
    }
    # Through JSON: no tuples, which YAML's safe form does not know, and no object twice, which it would abbreviate.
    plain = json.loads(json.dumps(record, allow_nan=False))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
    write_atomic(folder / FILE, HEADING + text)
    return folder / FILE


def read_record(folder: Path) -> Experiment:
    """Read the record of an experiment's folder, and find its files.

    Raises
    ------
    UserError
        There is no record, it is damaged or of another format, or a file that it names is gone.
    """
    path = folder / FILE
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} has no {FILE}; give the folder of a finished experiment, results/<experiment>, whose report "
            "writes it (`snakemake --cores 1 results/ab_report.html --forcerun report --config experiment=NAME`)"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML ({error}); make the experiment's report again") from None
    told = record.get("format") if isinstance(record, dict) else None
    if told != FORMAT:
        raise UserError(f"{path} has format {told!r}, and this version reads {FORMAT}; make the report again")
    base = os.path.abspath(folder)
    inputs = {name: Path(os.path.relpath(os.path.join(base, place))) for name, place in record["files"].items()}
    if missing := next((place for place in inputs.values() if not place.is_file()), None):
        raise UserError(
            f"{path} names {missing}, which does not exist; restore it, or run the experiment again: what is there is "
            "kept"
        )
    return Experiment(folder, record, inputs)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _provenance(told: Mapping[str, Any]) -> dict[str, Any]:
    """All but the command, which says how the report was made this time."""
    return {name: told.get(name) for name in ("hardware", "code", "versions", "data", "tokenizer")}


def _model(row: Mapping[str, Any], manifest: Path) -> dict[str, Any]:
    """Name, identity (a revision, or hashes of files) and scores of a model that was not trained here."""
    identity = read_json(manifest)["spec"].get("key", {}).get("model", {})
    return {"model": row["model"], **identity, **{score: row[score] for score in SCORES}}


def _result(arm: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's row of the report, with its grade and cost, without values by head."""
    row, cost = report["arms"][arm], report["cost_mean"][arm]
    alignment = row["alignment"] and {name: value for name, value in row["alignment"].items() if name != "per_head"}
    return {
        **{name: value for name, value in row.items() if name not in ("alignment", "seeds")},
        "control": arm in report["controls"],
        "grade": row["alignment"] and row["alignment"]["grade"],
        "train_seconds": cost["train_seconds"],
        "peak_memory_mib": cost["peak_memory_mib"],
        "alignment": alignment,
        "seeds": row["seeds"],
    }


def _without_places(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the last part of each absolute path alone, since a record is shared and a machine is not."""
    shown = json.loads(json.dumps(spec))
    for section, setting in PLACES:
        value = shown.get(section, {}).get(setting)
        if value and Path(value).is_absolute():
            shown[section][setting] = Path(value).name
    return shown

"""The files of finished runs, read into plain values; everything else in the report works from these."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.errors import UserError
from kava.files import sha256_file
from kava.report.clean import clean_text, jsonable
from kava.report.inputs import RunFiles

METRICS = ("strict_match", "flexible_extract")
FIELDS = ("doc_id", "question", "gold", "answer")


@dataclass(frozen=True)
class Evaluation:
    """One evaluated model.

    Attributes
    ----------
    manifest, cost : dict
        The stage's own record.
    samples : dict
        doc_id (as a string) → line of `samples.jsonl`.
    lines : int
        Number of lines read, which exceeds `len(samples)` if a doc_id occurs twice.
    """

    manifest: dict[str, Any]
    cost: dict[str, Any]
    samples: dict[str, dict[str, Any]]
    lines: int

    def scores(self, metric: str = "strict_match") -> dict[str, int]:
        """doc_id → 1 if the answer was right by `metric`, else 0."""
        return {doc: int(line[metric]) for doc, line in self.samples.items()}


@dataclass(frozen=True)
class Training:
    """One pretrain or distill stage: its record and one row per logged step."""

    manifest: dict[str, Any]
    cost: dict[str, Any]
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """Everything one arm left behind for one seed."""

    pretrain: Training | None
    distill: Training
    evaluation: Evaluation


def read_json(path: Path, lost: list[str]) -> dict[str, Any]:
    """One JSON object, with None for every number that is not finite; `lost` receives where those were.

    Raises
    ------
    UserError
        If the file does not hold one; the message names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); rerun the stage that writes it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}; rerun the stage that writes it")
    places: list[str] = []
    finite: dict[str, Any] = jsonable(value, lost=places)
    lost += [f"{path.as_posix()}: {place}" for place in places]
    return finite


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    # A model may emit bytes that are no UTF-8; they are data to be shown, not a reason to stop.
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, line {number} is not JSON: {error}; rerun the stage that writes it"
                ) from error


def read_evaluation(directory: Path, lost: list[str]) -> Evaluation:
    """Read `manifest.json`, `cost.json` and `samples.jsonl` of an evaluation.

    Raises
    ------
    UserError
        If a line lacks its question, gold or answer or its doc_id, or its marks are not 0 or 1.
    """
    path = directory / "samples.jsonl"
    samples: dict[str, dict[str, Any]] = {}
    lines = 0
    for line in _read_lines(path):
        lines += 1
        if missing := [key for key in FIELDS if key not in line]:
            raise UserError(f"{path}, line {lines}, has no {' and no '.join(missing)}; rerun the evaluation")
        for metric in METRICS:
            if line.get(metric) not in (0, 1):
                raise UserError(
                    f"{path}, doc_id {line.get('doc_id')}: {metric} is {line.get(metric)!r}, it must "
                    "be 0 or 1; rerun the evaluation"
                )
        texts = {key: clean_text(line[key]) for key in ("question", "gold", "answer")}
        samples[str(line["doc_id"])] = {**line, **texts}
    manifest, cost = (read_json(directory / name, lost) for name in ("manifest.json", "cost.json"))
    return Evaluation(manifest, cost, samples, lines)


def read_training(directory: Path, lost: list[str]) -> Training:
    """Read `manifest.json`, `cost.json` and `metrics.jsonl` of a training stage."""
    manifest, cost = (read_json(directory / name, lost) for name in ("manifest.json", "cost.json"))
    return Training(manifest, cost, list(_read_lines(directory / "metrics.jsonl")))


def read_student(directory: Path, lost: list[str]) -> Training:
    """As `read_training`; what `kava measure` has found of this very student replaces what training found."""
    training, anew = read_training(directory, lost), directory / "alignment.json"
    if not anew.is_file():
        return training
    found = read_json(anew, lost)
    if found["student"] != sha256_file(directory / "manifest.json"):
        return training  # of one that was trained before it
    manifest = training.manifest
    former = manifest.get("measured", {}).get("warnings", [])
    warnings = [sentence for sentence in manifest["warnings"] if sentence not in former]
    measured = {name: found[name] for name in ("alignment", "measured")}
    manifest |= {**measured, "warnings": warnings + measured["measured"]["warnings"]}
    return training


def read_run(files: RunFiles, lost: list[str]) -> Run:
    """Read all stages of one arm and seed."""
    return Run(
        None if files.projector is None else read_training(files.projector, lost),
        read_student(files.student, lost),
        read_evaluation(files.evaluation, lost),
    )

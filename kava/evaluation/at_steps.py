"""A model at steps of its training, judged by the validation questions: what the test questions are not asked for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kava.errors import UserError
from kava.evaluation.judge import Judgement, means
from kava.files import sha256_file, write_atomic
from kava.tasks.metric import Metric

FILE = "at_steps.jsonl"


def kept_students(student: Path, distilled: Mapping[str, Any], steps: Sequence[int]) -> dict[int, Path]:
    """Step → folder of the student as it was then.

    Parameters
    ----------
    student, distilled
        Folder and manifest of the distillation.
    steps
        Of `evaluation.at_steps`.

    Raises
    ------
    UserError
        The student was not kept at one of them.
    """
    if away := [step for step in steps if step not in distilled.get("at_steps", [])]:
        raise UserError(
            f"{student} was not kept at step {away[0]} of evaluation.at_steps; distil it again with that setting, or "
            "remove the step"
        )
    return {step: student / "at_steps" / str(step) for step in steps}


def seconds_at(metrics: Path, steps: Sequence[int]) -> dict[int, float]:
    """Seconds that training took up to some steps, by its `metrics.jsonl`; linear between two of its lines."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    logged = [0, *(record["step"] for record in records)]
    seconds = [0.0, *(record["seconds"] for record in records)]
    return {step: float(np.interp(step, logged, seconds)) for step in steps}


def write_steps(
    folder: Path, judged: Mapping[int, Judgement], metrics: Sequence[Metric], seconds: Mapping[int, float]
) -> dict[str, Any]:
    """Write a line per step and question, and return what the manifest says of them; nothing of no steps."""
    path = folder / FILE
    if not judged:
        path.unlink(missing_ok=True)  # of an evaluation that had some
        return {}
    lines = [{"step": step} | line for step, of_step in judged.items() for line in of_step.lines]
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    at_steps = {
        str(step): means(of_step.lines, metrics) | {"n": len(of_step.lines), "seconds": seconds[step]}
        for step, of_step in judged.items()
    }
    return {"at_steps": at_steps, "at_steps_sha256": sha256_file(path)}

"""What the stages logged while training, as rows for the charts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kava.report.notices import Notice
from kava.report.read import Run, Training

FIELDS = ("loss", "ce", "kv", "codi", "logit_kd", "cka", "attention", "cos_sim", "cos_sim_centered")
# A chart a few hundred pixels wide shows no more; a step logged every time would make the page megabytes.
POINTS = 200


def _thin(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` rows, evenly spaced, the first and the last among them."""
    if len(rows) <= limit:
        return rows
    return [rows[round(i * (len(rows) - 1) / (limit - 1))] for i in range(limit)]


def _row(logged: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"step": logged["step"]}
    for field in FIELDS:
        value = logged.get(field)
        if value is not None:
            # Five digits are more than a pixel shows.
            value = float(f"{value:.5g}") if math.isfinite(value) else None
        values[field] = value
    return values


def _not_finite(training: Training, head: Mapping[str, str]) -> list[Notice]:
    found = []
    for field in FIELDS:
        steps = [
            row["step"] for row in training.metrics if row.get(field) is not None and not math.isfinite(row[field])
        ]
        if steps:
            text = (
                f"{field} was not a finite number, logged steps affected: {len(steps)}, the first at step {steps[0]}."
            )
            found.append(Notice(**head, text=text))
    return found


def curves(runs: Mapping[str, Mapping[str, Run]]) -> tuple[list[dict[str, Any]], list[Notice]]:
    """Logged curves of all runs.

    Parameters
    ----------
    runs : mapping
        Arm → seed → run.

    Returns
    -------
    rows : list of dict
        One per arm, seed, stage (`pretrain` or `distill`) and step, with `FIELDS` (None where not logged or not
        finite); at most `POINTS` steps of each run.
    notices : list of Notice
        One for each curve with values that are not finite.
    """
    rows: list[dict[str, Any]] = []
    notices: list[Notice] = []
    for arm, seeds in runs.items():
        for seed, run in seeds.items():
            for stage, training in (("pretrain", run.pretrain), ("distill", run.distill)):
                if training is None:
                    continue
                head = {"arm": arm, "seed": seed, "stage": stage}
                rows += [{**head, **_row(row)} for row in _thin(training.metrics, POINTS)]
                notices += _not_finite(training, head)
    return rows, notices

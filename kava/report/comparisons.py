"""The declared comparisons as rows, with Holm's correction over all that could be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kava.report.read import Run
from kava.report.results import METRIC
from kava.report.shown import doubt
from kava.report.statistics import TEST, compare, holm


def compare_arms(
    pairs: Sequence[tuple[str, str]], runs: Mapping[str, Mapping[str, Run]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and a sentence for each pair that could not be compared."""
    rows: list[dict[str, Any]] = []
    refusals = []
    for a, b in pairs:
        base = {"a": a, "b": b, "metric": METRIC, "test": TEST}
        scores = [{seed: run.evaluation.scores() for seed, run in runs.get(x, {}).items()} for x in (a, b)]
        try:
            result = compare(a, b, *scores)
        except ValueError as error:
            message = str(error)
            refusals.append(f"{message[0].upper()}{message[1:]}.")
            nothing = dict.fromkeys(("delta", "ci95", "p_value", "seed_level", "n"))
            rows.append({**base, **nothing, "mcnemar": {}, "discordant": {}, "seeds": []})
        else:
            rows.append({**base, **asdict(result)})
    adjusted = iter(holm([row["p_value"] for row in rows if row["p_value"] is not None]))
    for row in rows:
        row["p_value_holm"] = None if row["p_value"] is None else next(adjusted)
        row["caveat"] = doubt(row)
    return rows, refusals

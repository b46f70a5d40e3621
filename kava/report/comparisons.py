"""The declared comparisons as rows, with Holm's corrections over all that could be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kava.report.effects import minimal_detectable_effect
from kava.report.read import Run
from kava.report.results import METRIC
from kava.report.shown import doubt
from kava.report.statistics import TEST, compare, holm

# Of a comparison that cannot be made, none is known.
NUMBERS = (
    *("delta", "rates", "ci95", "effect_size", "difference_sd", "minimal_detectable_effect"),
    *("p_value", "p_value_holm", "seed_level", "n"),
)


def compare_arms(
    pairs: Sequence[tuple[str, str]], runs: Mapping[str, Mapping[str, Run]], declared: Mapping[str, Sequence[str]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and a sentence for each pair that could not be compared.

    `declared` is arm → its declared seeds. A row is `complete` if it is over all seeds that both arms declare.
    """
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
            nothing = dict.fromkeys(NUMBERS)
            rows.append({**base, **nothing, "mcnemar": {}, "discordant": {}, "seeds": []})
        else:
            rows.append({**base, **asdict(result)})
    made = [row for row in rows if row["delta"] is not None]
    for row, adjusted in zip(made, holm([row["p_value"] for row in made]), strict=True):
        row["p_value_holm"] = adjusted
        row["minimal_detectable_effect"] = minimal_detectable_effect(row["difference_sd"], row["n"], len(made))
    _adjust_over_seeds([row["seed_level"] for row in made if row["seed_level"] is not None])
    for row in rows:
        row["complete"] = set(row["seeds"]) == set(declared[row["a"]]) & set(declared[row["b"]])
        row["caveat"] = doubt(row)
    return rows, refusals


def _adjust_over_seeds(levels: Sequence[dict[str, Any]]) -> None:
    """Add `p_value_holm`: students differ from seed to seed, so that of many comparisons some pass the t-test."""
    # Where every seed has the same difference t is infinite: it comes first and keeps no value.
    p_values = [0.0 if level["p_value"] is None else level["p_value"] for level in levels]
    for level, adjusted in zip(levels, holm(p_values), strict=True):
        level["p_value_holm"] = None if level["p_value"] is None else adjusted

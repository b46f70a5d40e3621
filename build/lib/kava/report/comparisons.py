"""The declared comparisons as rows, with Holm's corrections over all different ones that could be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kava.report.effects import minimal_detectable_effect
from kava.report.read import Run
from kava.report.results import METRIC
from kava.report.same_runs import Name, first_names
from kava.report.shown import doubt, tested
from kava.report.statistics import TEST, compare, holm

# Of a comparison that cannot be made, none is known.
NUMBERS = (
    *("delta", "rates", "ci95", "effect_size", "difference_sd", "minimal_detectable_effect"),
    *("p_value", "p_value_holm", "seed_level", "n"),
)
# Of runs that are the same, nothing is tested.
TESTED = tuple(name for name in NUMBERS if name not in ("delta", "rates", "n"))

Names = tuple[Name, ...]


def compare_arms(
    pairs: Sequence[tuple[str, str]], runs: Mapping[str, Mapping[str, Run]], declared: Mapping[str, Sequence[str]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and a sentence for each pair that could not be compared.

    `declared` is arm → its declared seeds. A row is `complete` if it is over all seeds that both arms declare. Where
    both arms are the same runs, it is `identical`: its difference is 0 by construction, and nothing is tested or
    corrected for. A row whose arms are the same runs as an earlier row's is `same_as` it (its a and b): one test and
    not two.
    """
    rows: list[dict[str, Any]] = []
    refusals = []
    first = first_names(runs)
    seen: dict[tuple[Names, Names], list[str]] = {}
    for a, b in pairs:
        base = {"a": a, "b": b, "metric": METRIC, "test": TEST}
        scores = [{seed: run.evaluation.scores() for seed, run in runs.get(x, {}).items()} for x in (a, b)]
        try:
            result = compare(a, b, *scores)
        except ValueError as error:
            message = str(error)
            refusals.append(f"{message[0].upper()}{message[1:]}.")
            nothing = dict.fromkeys(NUMBERS)
            row: dict[str, Any] = {**base, **nothing, "mcnemar": {}, "discordant": {}, "seeds": []}
        else:
            row = {**base, **asdict(result)}
        same_a, same_b = (tuple(first[x, seed] for seed in row["seeds"]) for x in (a, b))
        row |= {"identical": row["delta"] is not None and same_a == same_b, "same_as": None}
        if row["identical"]:
            row |= dict.fromkeys(TESTED) | {"mcnemar": {}, "discordant": {}}
        elif row["delta"] is not None:
            row["same_as"] = seen.get((same_a, same_b)) or seen.get((same_b, same_a))
            seen.setdefault((same_a, same_b), [a, b])
        rows.append(row)
    _adjust([row for row in rows if tested(row)])
    for row in rows:
        row["complete"] = set(row["seeds"]) == set(declared[row["a"]]) & set(declared[row["b"]])
        row["caveat"] = doubt(row)
    return rows, refusals


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Add what Holm's correction says, over the rows that are different tests, and to each of the others its own."""
    different = [row for row in rows if row["same_as"] is None]
    for row, adjusted in zip(different, holm([row["p_value"] for row in different]), strict=True):
        row["p_value_holm"] = adjusted
        row["minimal_detectable_effect"] = minimal_detectable_effect(row["difference_sd"], row["n"], len(different))
    _adjust_over_seeds([row["seed_level"] for row in different if row["seed_level"] is not None])
    by_arms = {(row["a"], row["b"]): row for row in different}
    for row in rows:
        if row["same_as"] is not None:
            earlier = by_arms[tuple(row["same_as"])]
            row |= {name: earlier[name] for name in ("p_value_holm", "minimal_detectable_effect")}
            if row["seed_level"] is not None:
                row["seed_level"]["p_value_holm"] = earlier["seed_level"]["p_value_holm"]


def _adjust_over_seeds(levels: Sequence[dict[str, Any]]) -> None:
    """Add `p_value_holm`: students differ from seed to seed, so that of many comparisons some pass the t-test."""
    # Where every seed has the same difference t is infinite: it comes first and keeps no value.
    p_values = [0.0 if level["p_value"] is None else level["p_value"] for level in levels]
    for level, adjusted in zip(levels, holm(p_values), strict=True):
        level["p_value_holm"] = None if level["p_value"] is None else adjusted

"""Each arm against the base student, which was not trained here: what distilling did at all.

The rows are those of comparisons, by the same tests and rules. They are not declared, so they change no declared
comparison; their own p-values are corrected for all of both, which is the stricter side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kava.report.comparisons import NUMBERS
from kava.report.format import listed, percent, points
from kava.report.read import Evaluation, Run
from kava.report.results import METRIC
from kava.report.shown import FEW, doubt, shown, tested, winner_of
from kava.report.statistics import TEST, compare, holm

BASE = "the base student"


def compare_with_base(
    runs: Mapping[str, Mapping[str, Run]],
    base: Evaluation,
    declared_seeds: Mapping[str, Sequence[str]],
    comparisons: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A row per arm that has runs, `a` the arm and `b` the base student, as `compare_arms` has them.

    An arm that answered other questions than the base student has a row without numbers.

    Parameters
    ----------
    runs, declared_seeds
        Arm → seed → run; arm → its seeds.
    base
        Of the base student.
    comparisons
        The declared ones, whose p-values count in the correction.
    """
    rows = []
    for arm, seeds in runs.items():
        if not seeds:
            continue
        row: dict[str, Any] = {"a": arm, "b": BASE, "metric": METRIC, "test": TEST, "identical": False, "same_as": None}
        row["complete"] = set(seeds) == set(declared_seeds[arm])
        scores = {seed: run.evaluation.scores() for seed, run in seeds.items()}
        asked = {run.evaluation.manifest.get("questions_sha256") for run in seeds.values()}
        same = asked == {base.manifest.get("questions_sha256")} and all(
            run.keys() == base.samples.keys() for run in scores.values()
        )
        if same and base.samples:
            row |= asdict(compare(arm, BASE, scores, dict.fromkeys(scores, base.scores())))
        else:
            row |= dict.fromkeys(NUMBERS) | {"mcnemar": {}, "discordant": {}, "seeds": []}
        rows.append(row)
    _adjust(
        [row for row in rows if row["delta"] is not None],
        [row for row in comparisons if tested(row) and row["same_as"] is None],
    )
    for row in rows:
        row["minimal_detectable_effect"] = None
        row["caveat"] = doubt(row)
    return rows


def of_base(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the arms stand against the base student, for the verdict: with numbers if they are few, else counted."""
    known = [row for row in rows if tested(row)]
    if not known:
        return []
    rate = percent(known[0]["rates"][1])
    if len(known) > FEW:
        higher, lower = (sum(winner_of(row) == who(row) for row in known) for who in (_arm, _base))
        alike = len(known) - higher - lower
        return [
            f"measured from {BASE} ({rate}), of {len(known)} arms {higher} scored higher in these students, {lower} "
            f"lower, and {alike} show{'s' if alike == 1 else ''} no difference"
        ]
    said = []
    for row in known:
        low, high = map(points, row["ci95"])
        doubtful = "" if shown(row) else ", no difference shown"
        said.append(f"{points(row['delta'])} points for {row['a']} (95% interval {low} to {high}{doubtful})")
    return [f"measured from {BASE} ({rate}), these students stand at {listed(said)}"]


def _arm(row: Mapping[str, Any]) -> str:
    return str(row["a"])


def _base(row: Mapping[str, Any]) -> str:
    return str(row["b"])


def _adjust(rows: Sequence[dict[str, Any]], declared: Sequence[Mapping[str, Any]]) -> None:
    """Holm's corrections of these rows, over them and the declared comparisons together."""
    adjusted = holm([row["p_value"] for row in [*rows, *declared]])
    for row, value in zip(rows, adjusted, strict=False):
        row["p_value_holm"] = value
    levels = [row["seed_level"] for row in [*rows, *declared] if row["seed_level"] is not None]
    # Without a p, t is infinite: it comes first and keeps no value.
    over_seeds = holm([0.0 if level["p_value"] is None else level["p_value"] for level in levels])
    own = [row["seed_level"] for row in rows if row["seed_level"] is not None]
    for level, value in zip(own, over_seeds, strict=False):
        level["p_value_holm"] = None if level["p_value"] is None else value

"""What the declared comparisons show, before it is put into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALPHA = 0.05

STRUCTURED = "structured beats flat"
FLAT = "flat beats structured"
NO_DIFFERENCE = "no difference shown"
NO_CONTROL_BEATEN = "no KV arm beats its control"

NOT_REPEATED = "differs in these students; not shown to repeat over seeds"

Row = Mapping[str, Any]


def winner_of(row: Row) -> str | None:
    """The arm that the comparison shows to be better, None if it shows no difference."""
    if row["p_value_holm"] is None or row["p_value_holm"] >= ALPHA or row["delta"] == 0:
        return None
    return row["a"] if row["delta"] > 0 else row["b"]


def outcome_of(row: Row) -> tuple[str, str]:
    """Winner and loser of a comparison that shows a difference."""
    return (row["a"], row["b"]) if row["delta"] > 0 else (row["b"], row["a"])


def unrepeated(row: Row) -> bool:
    """Whether a shown difference fails the paired t-test over seeds; False where there are too few to test."""
    over_seeds = row["seed_level"]
    p_value = over_seeds and over_seeds["p_value"]
    return winner_of(row) is not None and p_value is not None and p_value > ALPHA


@dataclass(frozen=True)
class Shown:
    """The comparisons that could be made, sorted by what they compare.

    Attributes
    ----------
    against
        KV arm → its comparisons with controls.
    between
        Comparisons of two KV arms.
    pairs
        Those of them between a `flat*` and a `structured` aligner.
    better, missed
        KV arms shown to be better than all controls they were compared with, and the other keys of `against`.
    controls
        Names of the control arms.
    """

    against: dict[str, list[Row]]
    between: list[Row]
    pairs: list[Row]
    better: list[str]
    missed: list[str]
    controls: Sequence[str]


def sort_out(arms: Mapping[str, Row], rows: Sequence[Row], controls: Sequence[str]) -> Shown:
    """Sort `rows`, all of which have a difference."""
    against: dict[str, list[Row]] = {}
    between: list[Row] = []
    for row in rows:
        kv = [name for name in (row["a"], row["b"]) if name not in controls]
        if len(kv) == 1:
            against.setdefault(kv[0], []).append(row)
        elif len(kv) == 2:
            between.append(row)
    better = [name for name, met in against.items() if all(winner_of(row) == name for row in met)]

    def is_pair(row: Row) -> bool:
        kinds = sorted(arms[name]["aligner"] or "" for name in (row["a"], row["b"]))
        return kinds[0].startswith("flat") and kinds[1] == "structured"

    pairs = [row for row in between if is_pair(row)]
    return Shown(against, between, pairs, better, [name for name in against if name not in better], controls)


def structure(pairs: Sequence[Row], arms: Mapping[str, Row]) -> tuple[str, str]:
    """Outcome and headline of the pairs of a flat and a structured aligner."""
    kinds = {arms[winner]["aligner"] if (winner := winner_of(row)) else None for row in pairs}
    sides = {kind if kind in (None, "structured") else "flat" for kind in kinds}
    if sides == {"structured"}:
        return STRUCTURED, "Structured beats flat"
    if sides == {"flat"}:
        return FLAT, "Flat beats structured"
    if sides == {None}:
        return NO_DIFFERENCE, "No difference shown between structured and flat"
    return NO_DIFFERENCE, "No consistent difference shown between structured and flat"

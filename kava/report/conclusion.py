"""Outcome and headline of the verdict, by the rules of `kava.report.verdict`, whatever the number of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kava.report.format import capital, listed, p_equals
from kava.report.shown import (
    ENOUGH_SEEDS,
    FLAT,
    NO_CONTROL_BEATEN,
    NO_DIFFERENCE,
    SEED_MISSING,
    STRUCTURED,
    TOO_FEW_SEEDS,
    Row,
    Shown,
    kind_of,
    outcome_of,
    pairs_in_words,
    repeated,
    seeds_in_words,
    too_few_seeds,
    unrepeated,
    winner_of,
)

Configs = Mapping[str, Mapping[str, Any]]


def conclude(found: Shown, configs: Configs) -> tuple[str, str]:
    """Outcome and headline: first what the KV arms do against their controls, then what holds among them."""
    if found.against and not found.better:
        if not found.ahead:
            return NO_CONTROL_BEATEN, f"No KV arm is shown to beat {found.what_is_beaten}"
        ahead = [row for name in found.ahead for row in found.against[name]]
        outcome = TOO_FEW_SEEDS if too_few_seeds(ahead) else NO_CONTROL_BEATEN
        why = not_anew(ahead)
        among = among_kv(found, configs)[1]
        # Said once where both clauses end in it.
        return outcome, capital(
            f"{_students_ahead(found)}{'' if among.endswith(why) else f' {why}'}{among and f'; {among}'}"
        )
    outcome, among = among_kv(found, configs)
    if not found.better:
        return outcome, capital(among)
    won = victories(found, found.better)
    among = f"{among} among the KV arms" if among == NO_DIFFERENCE else among
    said = f"{won}; {among}" if among else won
    return (outcome if outcome in (STRUCTURED, FLAT) else won), capital(said)


def among_kv(found: Shown, configs: Configs) -> tuple[str, str]:
    """Outcome and clause of the pairs about structure; without such, of all comparisons of KV arms.

    Where no KV arm was compared at all, those of the controls take their place. The clause is empty where KV arms
    were compared with controls alone.
    """
    if found.pairs:
        return structure(found.pairs, configs)
    if found.between or not found.against:
        return differences(found.between or found.among_controls)
    return NO_DIFFERENCE, ""


def structure(pairs: Sequence[Row], configs: Configs) -> tuple[str, str]:
    """Outcome and clause of the pairs of a flat and a structured aligner."""
    winners = [winner_of(row) for row in pairs]
    sides = {winner and ("structured" if kind_of(configs[winner]) == "structured" else "flat") for winner in winners}
    if sides == {None}:
        return NO_DIFFERENCE, "no difference shown between structured and flat"
    if len(sides) > 1:
        return NO_DIFFERENCE, "no consistent difference shown between structured and flat"
    if all(repeated(row) for row in pairs):
        outcome = STRUCTURED if sides == {"structured"} else FLAT
        return outcome, outcome
    better, other = ("structured", "flat") if sides == {"structured"} else ("flat", "structured")
    return unrepeated_outcome(pairs), f"the {better} students beat the {other} ones {not_anew(pairs)}"


def differences(rows: Sequence[Row]) -> tuple[str, str]:
    """Outcome and clause of comparisons that are about nothing in particular."""
    lasting = [beats(row) for row in rows if repeated(row)]
    passing = [row for row in rows if unrepeated(row)]
    said = list(lasting)
    if passing:
        said.append(f"{listed([students_beat(row) for row in passing])} {not_anew(passing)}")
    outcome = "; ".join(lasting) or (unrepeated_outcome(passing) if passing else NO_DIFFERENCE)
    return outcome, "; ".join(said) or NO_DIFFERENCE


def unrepeated_outcome(rows: Sequence[Row]) -> str:
    """Outcome of differences that are shown of these students, but not repeated."""
    return TOO_FEW_SEEDS if too_few_seeds(rows) else NO_DIFFERENCE


def not_anew(rows: Sequence[Row]) -> str:
    """Why differences of these students are not shown for others, in brackets."""
    kinds: dict[tuple[bool, int], list[Row]] = {}
    for row in rows:
        if unrepeated(row):
            kinds.setdefault((row["complete"], len(row["seeds"]) if row["complete"] else 0), []).append(row)
    whys = []
    for (complete, seeds), alike in kinds.items():
        if not complete:
            why = SEED_MISSING
        elif seeds < ENOUGH_SEEDS:
            why = seeds_in_words(seeds)
        else:
            largest = max(row["seed_level"]["p_value_holm"] for row in alike)
            why = f"Holm-adjusted {p_equals(largest)} over {seeds} seeds"
        whys.append(f"{why} for {pairs_in_words(alike)}" if len(kinds) > 1 else why)
    return f"(not shown for students trained anew: {'; '.join(whys)})"


def victories(found: Shown, names: Sequence[str]) -> str:
    """The arms `names` beat the controls they met; arms that met the same controls are named together."""
    return "; ".join(
        f"{listed(winners)} beat{'s' if len(winners) == 1 else ''} {listed(controls)}"
        for controls, winners in _by_controls_met(found, names).items()
    )


def _students_ahead(found: Shown) -> str:
    return "; ".join(
        f"the {listed(winners)} students beat the {listed(controls)} ones"
        for controls, winners in _by_controls_met(found, found.ahead).items()
    )


def _by_controls_met(found: Shown, names: Sequence[str]) -> dict[tuple[str, ...], list[str]]:
    met: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        met.setdefault(found.met_by(name), []).append(name)
    return met


def beats(row: Row) -> str:
    """A difference that is repeated, in words."""
    assert repeated(row), f"the difference of {row['a']} and {row['b']} is not repeated"
    winner, loser = outcome_of(row)
    return f"{winner} beats {loser}"


def students_beat(row: Row) -> str:
    """A difference of these students, in words; what limits it is said after it."""
    assert unrepeated(row), f"{row['a']} and {row['b']} show no difference, or one that is repeated"
    winner, loser = outcome_of(row)
    return f"the {winner} students beat the {loser} ones"

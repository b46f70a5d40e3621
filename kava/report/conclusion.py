"""Outcome and headline of the verdict, by the rules of `kava.report.verdict`, whatever the number of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kava.report.format import capital, listed, p_equals, points, spread
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
    shown,
    too_few_seeds,
    unrepeated,
    winner_of,
)

Configs = Mapping[str, Mapping[str, Any]]

# Names, or comparisons, that a clause of the headline can hold; of more it says how many.
NAMED = 4


class Clause(NamedTuple):
    """What is said, and in `why` the reason for which it is said of these students alone; empty if it is not."""

    text: str
    why: str = ""


def sentence(clauses: Sequence[Clause]) -> str:
    """Clauses as one sentence; a reason that several have is said after the last of them."""
    last = {clause.why: i for i, clause in enumerate(clauses)}
    said = [f"{c.text} ({c.why})" if c.why and last[c.why] == i else c.text for i, c in enumerate(clauses)]
    return "; ".join(said)


def conclude(found: Shown, configs: Configs) -> tuple[str, str]:
    """Outcome and headline: whether distilling helped, against the controls, and by how much; then the arms' own order.

    A control that is not beaten comes before all else. In a report over experiments, what differs between arms of the
    same name comes first.
    """
    outcome, among = among_kv(found, configs)
    same_name = across(found)
    if not found.against:
        return outcome, capital(sentence([*same_name, *among]))
    if found.better:
        controls = Clause(victories(found, found.better, by_how_much=True))
        outcome = outcome if outcome in (STRUCTURED, FLAT) else victories(found, found.better)
    elif found.ahead:
        rows = [row for name in found.ahead for row in found.against[name]]
        controls = Clause(_students_ahead(found), not_anew(rows))
        outcome = TOO_FEW_SEEDS if too_few_seeds(rows) else NO_CONTROL_BEATEN
    else:
        nothing = Clause(f"No KV arm is shown to beat {found.what_is_beaten}")
        return NO_CONTROL_BEATEN, sentence([nothing, *same_name])
    if missed := missed_in_headline(found):
        return outcome, capital(sentence([Clause(not_shown_to_beat(missed, found)), controls, *same_name, *among]))
    first = [controls, *same_name] if outcome == NO_CONTROL_BEATEN else [*same_name, controls]
    return outcome, capital(sentence([*first, *among]))


def missed_in_headline(found: Shown) -> list[str]:
    """KV arms that the answer speaks of although they are not shown to beat their controls: that has to come first."""
    told = {name for row in [*found.across, *(found.pairs or found.between)] for name in (row["a"], row["b"])}
    return [name for name in (found.ahead if found.better else []) + found.missed if name in told]


def not_shown_to_beat(names: Sequence[str], found: Shown) -> str:
    """In words, with the number of arms in place of many names."""
    who = listed(names) if len(names) <= NAMED else f"{len(names)} of the KV arms"
    return f"{who} {'is' if len(names) == 1 else 'are'} not shown to beat {found.what_is_beaten}"


def across(found: Shown) -> list[Clause]:
    """What arms of the same name in two experiments show, with their differences in points."""
    differing = [row for row in found.across if shown(row)]
    alike = [row for row in found.across if not shown(row)]
    if len(differing) > NAMED:
        among = f"{len(differing)} of {len(found.across)} arms scored otherwise than those of the same name"
        clauses = [Clause(f"{among} in these students")]
    else:
        clauses = [_by_points(row) for row in differing]
    if len(alike) > NAMED:
        others = "other " if differing else ""
        clauses.append(Clause(f"no difference shown in {len(alike)} {others}pairs of arms of the same name"))
    else:
        clauses += [
            Clause(
                f"no difference shown between {row['a']} and {row['b']}, {points(row['delta'])} points, {_edges(row)}"
            )
            for row in alike
        ]
    return clauses


def _by_points(row: Row) -> Clause:
    """A difference between experiments: a claim if it is repeated, else what these students scored."""
    if repeated(row):
        sign = 1 if row["delta"] > 0 else -1
        return Clause(f"{beats(row)} by {spread(abs(row['delta']))} points, {_edges(row, sign)}")
    higher = "higher" if row["delta"] > 0 else "lower"
    text = f"{row['a']} scored {spread(abs(row['delta']))} points {higher} than {row['b']} in these students"
    return Clause(f"{text}, {_edges(row)}", not_anew([row]))


def _edges(row: Row, sign: int = 1) -> str:
    low, high = sorted(sign * edge for edge in row["ci95"])
    return f"95% interval {points(low)} to {points(high)}"


def among_kv(found: Shown, configs: Configs) -> tuple[str, list[Clause]]:
    """Outcome and clauses of the pairs about structure; without such, of all comparisons of KV arms.

    Where no KV arm was compared at all, those of the controls take their place. There is no clause where KV arms were
    compared with controls alone. Arms of several experiments are always named, since each has a `structured`.
    """
    if found.pairs and not found.experiments:
        outcome, clause = structure(found.pairs, configs)
        return outcome, [clause]
    if found.between or not found.against:
        rows = found.between or found.among_controls
        outcome, clauses = differences(rows, found.experiments)
        if not clauses and rows:
            among = " among the KV arms" if found.between and found.against else ""
            clauses = [Clause(f"{NO_DIFFERENCE}{among}")]
        return structure(found.pairs, configs)[0] if found.pairs else outcome, clauses
    return NO_DIFFERENCE, []


def structure(pairs: Sequence[Row], configs: Configs) -> tuple[str, Clause]:
    """Outcome and clause of the pairs of a flat and a structured aligner."""
    winners = [winner_of(row) for row in pairs]
    sides = {winner and ("structured" if kind_of(configs[winner]) == "structured" else "flat") for winner in winners}
    if sides == {None}:
        return NO_DIFFERENCE, Clause("no difference shown between structured and flat")
    if len(sides) > 1:
        return NO_DIFFERENCE, Clause("no consistent difference shown between structured and flat")
    if all(repeated(row) for row in pairs):
        outcome = STRUCTURED if sides == {"structured"} else FLAT
        return outcome, Clause(outcome)
    higher, lower = ("structured", "flat") if sides == {"structured"} else ("flat", "structured")
    return unrepeated_outcome(pairs), Clause(f"{higher} scored higher than {lower} in these students", not_anew(pairs))


def differences(rows: Sequence[Row], name_all: bool = False) -> tuple[str, list[Clause]]:
    """Outcome and clauses of comparisons that are about nothing in particular; none if they show no difference.

    Those that show none are named where there is nothing else to say or `name_all` asks for it, and few they are.
    """
    lasting = [beats(row) for row in rows if repeated(row)]
    passing = [row for row in rows if unrepeated(row)]
    alike = [row for row in rows if not shown(row)]
    clauses = [Clause(text) for text in lasting]
    if passing:
        clauses.append(
            Clause(f"{listed([scored_higher(row) for row in passing])} in these students", not_anew(passing))
        )
    if alike and len(alike) <= NAMED and (name_all or not clauses):
        named = [f"between {row['a']} and {row['b']}" for row in alike]
        clauses.append(Clause(f"no difference shown {listed(named)}"))
    outcome = "; ".join(lasting) or (unrepeated_outcome(passing) if passing else NO_DIFFERENCE)
    return outcome, clauses


def unrepeated_outcome(rows: Sequence[Row]) -> str:
    """Outcome of differences that are shown of these students, but not repeated."""
    return TOO_FEW_SEEDS if too_few_seeds(rows) else NO_DIFFERENCE


def not_anew(rows: Sequence[Row]) -> str:
    """Why differences of these students say nothing of the arms, that is, of students trained anew."""
    kinds: dict[tuple[bool, int], list[Row]] = {}
    for row in rows:
        if unrepeated(row):
            kinds.setdefault((row["complete"], len(row["seeds"]) if row["complete"] else 0), []).append(row)
    whys = []
    for (complete, seeds), alike in kinds.items():
        if not complete:
            why = SEED_MISSING
        elif seeds < ENOUGH_SEEDS:
            if len(kinds) == 1:
                return f"with {seeds_in_words(seeds)} this shows nothing about the arms"
            why = seeds_in_words(seeds)
        else:
            largest = max(row["seed_level"]["p_value_holm"] for row in alike)
            why = f"Holm-adjusted {p_equals(largest)} over {seeds} seeds"
        whys.append(f"{why} for {pairs_in_words(alike)}" if len(kinds) > 1 else why)
    return f"not shown for students trained anew: {'; '.join(whys)}"


def victories(found: Shown, names: Sequence[str], by_how_much: bool = False) -> str:
    """The arms `names` beat the controls they met; arms that met the same controls are named together."""
    return "; ".join(
        f"{listed(winners)} beat{'s' if len(winners) == 1 else ''} {listed(controls)}"
        f"{_by_how_much(found, winners) if by_how_much else ''}"
        for controls, winners in _by_controls_met(found, names).items()
    )


def _students_ahead(found: Shown) -> str:
    higher = [
        f"{listed(winners)} scored higher than {listed(controls)} in these students,{_by_how_much(found, winners)}"
        for controls, winners in _by_controls_met(found, found.ahead).items()
    ]
    return "; ".join(higher)


def _by_how_much(found: Shown, winners: Sequence[str]) -> str:
    """The winners' differences from the controls they met: each of few with one control, else the range."""
    rows = [row for name in winners for row in found.against[name]]
    gains = [spread(gain) for gain in sorted(abs(row["delta"]) for row in rows)]
    if len(set(gains)) == 1:
        return f" by {gains[0]} points"
    if len(rows) == len(winners) <= NAMED:
        return f" by {listed([spread(abs(row['delta'])) for row in rows])} points"
    return f" by {gains[0]} to {gains[-1]} points"


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


def scored_higher(row: Row) -> str:
    """A difference of these students, in words; that it is theirs alone, and why, is said after it."""
    assert unrepeated(row), f"{row['a']} and {row['b']} show no difference, or one that is repeated"
    winner, loser = outcome_of(row)
    return f"{winner} scored higher than {loser}"

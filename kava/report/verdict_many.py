"""The verdict where more comparisons are declared than a sentence can hold the numbers of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kava.report.format import listed
from kava.report.shown import NO_CONTROL_BEATEN, NO_DIFFERENCE, Row, Shown, outcome_of, structure, winner_of

# Declared comparisons whose numbers a sentence can hold.
FEW = 6


def many(shown: Shown, arms: Mapping[str, Row]) -> tuple[str, str, list[str]]:
    """Outcome, headline and counts, by rules 2 to 6 of `kava.report.verdict`; names instead of numbers."""
    said_of_pairs = [_structure_said(shown, arms)] if shown.pairs else []
    numbers = _by_control(shown) + _among(shown, said_of_pairs)
    if shown.against and not shown.better:
        return NO_CONTROL_BEATEN, "No KV arm beats its control", numbers
    if shown.against and (shown.missed or not shown.pairs):
        outcome = _victories(shown)
        return outcome, _capital(outcome), numbers
    if shown.pairs:
        return *structure(shown.pairs, arms), _by_control(shown) + _among(shown, [])
    differing = [row for row in shown.between if winner_of(row)]
    if not differing:
        return NO_DIFFERENCE, "No difference shown", [_count(len(shown.between), "comparison")]
    outcome = "; ".join(_beats(row) for row in differing)
    rest = len(shown.between) - len(differing)
    return outcome, _capital(outcome), [f"no difference shown in {_count(rest, 'other comparison')}"] if rest else []


def _victories(shown: Shown) -> str:
    """Winners named together where they met the same controls."""
    met: dict[tuple[str, ...], list[str]] = {}
    for name in shown.better:
        names = {row["b"] if row["a"] == name else row["a"] for row in shown.against[name]}
        met.setdefault(tuple(control for control in shown.controls if control in names), []).append(name)
    return "; ".join(
        f"{listed(winners)} beat{'s' if len(winners) == 1 else ''} {listed(controls)}"
        for controls, winners in met.items()
    )


def _by_control(shown: Shown) -> list[str]:
    lines = []
    for control in shown.controls:
        won: dict[str | None, list[str]] = {}
        for name, rows in shown.against.items():
            for row in rows:
                if control in (row["a"], row["b"]):
                    won.setdefault(winner_of(row), []).append(name)
        worse, alike = won.pop(control, []), won.pop(None, [])
        better = [name for names in won.values() for name in names]
        total = len(better) + len(worse) + len(alike)
        if not total:
            continue
        parts = [_named(better, "better") if better else "none is better"]
        if worse:
            parts.append(_named(worse, "worse"))
        if alike:
            others = "the other " if len(alike) < total else ""
            parts.append(f"{others}{len(alike)} show{'s' if len(alike) == 1 else ''} no difference")
        lines.append(f"of {_count(total, 'KV arm')} compared with {control}, {listed(parts)}")
    return lines


def _structure_said(shown: Shown, arms: Mapping[str, Row]) -> str:
    headline = structure(shown.pairs, arms)[1]
    return headline[0].lower() + headline[1:]


def _among(shown: Shown, said: list[str]) -> list[str]:
    """What the comparisons of KV arms with each other show, after what is `said` of the pairs."""
    rest = [row for row in shown.between if row not in shown.pairs]
    differing = [row for row in rest if winner_of(row)]
    said = said + [_beats(row) for row in differing]
    if alike := len(rest) - len(differing):
        said.append(f"no difference shown in {_count(alike, 'other comparison' if said else 'comparison')}")
    return [f"among the KV arms, {listed(said)}"] if said else []


def _beats(row: Row) -> str:
    winner, loser = outcome_of(row)
    return f"{winner} beats {loser}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _named(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {'is' if len(names) == 1 else 'are'} {what} ({', '.join(names)})"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]

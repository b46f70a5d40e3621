"""What stands behind the verdict where more comparisons are declared than a sentence can hold the numbers of."""

from __future__ import annotations

from collections.abc import Sequence

from kava.report.conclusion import NAMED, Configs, beats, not_anew, scored_higher, sentence, structure
from kava.report.format import listed
from kava.report.shown import Row, Shown, repeated, unrepeated, winner_of

HIGHER_HERE = "higher in these students only"
LOWER_HERE = "lower in these students only"


def counts(found: Shown, configs: Configs) -> list[str]:
    """Counts by control, then what the comparisons of KV arms and of controls with each other show, by name."""
    about_structure = [] if found.experiments else found.pairs
    said = [sentence([structure(about_structure, configs)[1]])] if about_structure else []
    rest = [row for row in found.between if row not in about_structure]
    if found.experiments and len(rest) <= NAMED:
        rest = []  # The headline names them all.
    return [
        *_by_control(found),
        *_among("KV arms", rest, said),
        *_among("controls", found.among_controls, []),
    ]


def _by_control(found: Shown) -> list[str]:
    lines = []
    for control in found.controls:
        names: dict[str, list[str]] = {}
        for name, rows in found.against.items():
            for row in rows:
                if control in (row["a"], row["b"]):
                    names.setdefault(_standing(row, name), []).append(name)
        total = sum(map(len, names.values()))
        if not total:
            continue
        alike = names.pop("", [])
        parts = [] if "better" in names else ["none is shown to be better"]
        for standing in ("better", HIGHER_HERE, "worse", LOWER_HERE):
            if standing in names:
                parts.append(_named(names[standing], standing))
        if alike:
            others = "the other " if len(alike) < total else ""
            parts.append(f"{others}{len(alike)} show{'s' if len(alike) == 1 else ''} no difference")
        lines.append(f"of {_count(total, 'KV arm')} compared with {control}, {listed(parts)}")
    return lines


def _standing(row: Row, name: str) -> str:
    """How the arm stands against its control; empty where no difference is shown."""
    winner = winner_of(row)
    if winner is None:
        return ""
    if repeated(row):
        return "better" if winner == name else "worse"
    return HIGHER_HERE if winner == name else LOWER_HERE


def _among(arms: str, rows: Sequence[Row], said: list[str]) -> list[str]:
    """What comparisons of `arms` with each other show, after what is `said` already."""
    passing = [row for row in rows if unrepeated(row)]
    said = said + [beats(row) for row in rows if repeated(row)]
    if passing:
        said.append(f"{listed([scored_higher(row) for row in passing])} in these students ({not_anew(passing)})")
    if alike := sum(winner_of(row) is None for row in rows):
        said.append(f"no difference shown in {_count(alike, 'other comparison' if said else 'comparison')}")
    return [f"among the {arms}, {listed(said)}"] if said else []


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _named(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {'is' if len(names) == 1 else 'are'} {what} ({', '.join(names)})"

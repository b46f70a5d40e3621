"""The table of the first screen: what each arm scored, against plain fine-tuning and against the base student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kava.report.shown import repeated, shown

# Arms that a first screen has room for.
ROWS = 5

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Gain:
    """A difference of two shares with its 95% interval, and what may be said of it."""

    delta: float
    ci95: Sequence[float] | None
    reads: str


@dataclass(frozen=True)
class Line:
    """One arm; a gain is None where no such comparison was declared or could be made."""

    name: str
    rate: float | None
    over_control: Gain | None
    over_base: Gain | None


@dataclass(frozen=True)
class FirstScreen:
    """The lines, KV arms first; `control` is the arm of plain fine-tuning, `left_out` the number of other arms."""

    control: str | None
    lines: list[Line]
    left_out: int


def first_screen(report: Mapping[str, Any], order: Sequence[str]) -> FirstScreen:
    """What stands in the table; `order` is that of the arms, best first."""
    control = plain_control(report)
    kv_arms = [name for name in order if name not in report["controls"]]
    arms = sorted(kv_arms, key=lambda name: -(report["arms"][name]["strict_match_mean"] or 0.0))[:ROWS]
    chosen = [*arms, control] if control else arms
    of_base = {row["a"]: gain(row, row["a"]) for row in report["against_base"]}
    lines = [
        Line(name, report["arms"][name]["strict_match_mean"], _over(report, name, control), of_base.get(name))
        for name in chosen
    ]
    return FirstScreen(control, lines, len(report["arms"]) - len(lines))


def plain_control(report: Mapping[str, Any]) -> str | None:
    """The control that is trained on the texts alone, else the first one; None where there is none."""
    controls = report["controls"]
    plain = [name for name in controls if report["arms"][name]["aligner"] is None]
    if "sft" in plain:
        return "sft"
    return next(iter(plain or controls), None)


def gain(row: Row, name: str) -> Gain | None:
    """A comparison's difference, turned round where needed so that it is that of `name`."""
    if row["delta"] is None:
        return None
    sign = 1 if row["a"] == name else -1
    edges = row["ci95"] and sorted(sign * edge for edge in row["ci95"])
    return Gain(sign * row["delta"], edges, _reads(row, sign * row["delta"] > 0))


def _reads(row: Row, above: bool) -> str:
    if row["identical"]:
        return "the same runs"
    if not shown(row):
        return "no difference shown"
    if repeated(row):
        return "better" if above else "worse"
    return "higher in these students" if above else "lower in these students"


def _over(report: Mapping[str, Any], name: str, control: str | None) -> Gain | None:
    pair = {name, control}
    row = next((row for row in report["comparisons"] if {row["a"], row["b"]} == pair), None)
    # Over fewer seeds than declared it is no difference of these rows.
    return gain(row, name) if row is not None and row["complete"] else None

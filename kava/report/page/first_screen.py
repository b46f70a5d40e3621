"""The table of the first screen: what each arm scored, against plain fine-tuning and against the base student."""

from collections.abc import Sequence
from dataclasses import dataclass

from kava.report.build import Report
from kava.report.charts.style import best_first
from kava.report.statistics.compare import Comparison
from kava.report.statistics.intervals import Interval

# Arms that a first screen has room for.
ROWS = 5


@dataclass(frozen=True)
class Gain:
    """A difference of two means with its 95% interval, and what may be said of it."""

    delta: float
    ci95: Interval | None
    reads: str


@dataclass(frozen=True)
class Line:
    """One arm; a gain is None where no such comparison was declared or could be made."""

    name: str
    mean: float | None
    over_control: Gain | None
    over_base: Gain | None


@dataclass(frozen=True)
class FirstScreen:
    """The lines, KV arms first; `control` is the arm of plain fine-tuning, `left_out` the number of other arms."""

    control: str | None
    lines: Sequence[Line]
    left_out: int


def first_screen(report: Report, order: Sequence[str]) -> FirstScreen:
    """What stands in the table, the best KV arms first; `order` is that of all arms."""
    control = plain_control(report)
    arms = best_first(report, [name for name in order if name not in report.controls])[:ROWS]
    of_base = {row.a: gain(row, row.a) for row in report.against_base}
    lines = [
        Line(name, report.arms[name].primary.mean, _over(report, name, control), of_base.get(name))
        for name in (*arms, *([control] if control else ()))
    ]
    return FirstScreen(control, lines, len(report.arms) - len(lines))


def plain_control(report: Report) -> str | None:
    """The control that is trained on the texts alone, else the first one; None where there is none."""
    plain = [name for name in report.controls if report.arms[name].aligner is None]
    return "sft" if "sft" in plain else next(iter(plain or report.controls), None)


def gain(row: Comparison, name: str) -> Gain | None:
    """A comparison's difference, turned round where needed so that it is that of `name`."""
    if row.delta is None:
        return None
    sign = 1 if row.a == name else -1
    low, high = sorted(sign * edge for edge in row.ci95) if row.ci95 else (None, None)
    edges = None if low is None or high is None else (low, high)
    return Gain(sign * row.delta, edges, _reads(row, name, sign * row.delta > 0))


def _reads(row: Comparison, name: str, above: bool) -> str:
    if row.identical:
        return "the same runs"
    if not row.shown:
        return "no difference shown"
    if row.repeated:
        return "better" if row.winner == name else "worse"
    return "higher in these students" if above else "lower in these students"


def _over(report: Report, name: str, control: str | None) -> Gain | None:
    row = next((row for row in report.comparisons if {row.a, row.b} == {name, control}), None)
    # Over fewer seeds than declared it is no difference of these rows.
    return gain(row, name) if row is not None and row.complete else None

"""The tables of steps that arms saved, by each metric that is followed over steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kava.report.clean import grouped
from kava.report.steps import StepsSaved
from kava.report.verdict.saved import cell


@dataclass(frozen=True)
class SavedRow:
    """A pair; `cells` is step of the control → what the table shows of it, in large and in small."""

    arm: str
    control: str
    cells: Mapping[int, tuple[str, str]]


@dataclass(frozen=True)
class SavedTable:
    """The pairs by one metric, and the steps that any control has."""

    label: str
    steps: Sequence[int]
    rows: Sequence[SavedRow]


def saved_tables(saved: Sequence[StepsSaved]) -> list[SavedTable]:
    """A table by metric, in the order given."""
    return [
        SavedTable(
            metric.label,
            sorted({step for row in rows for step in row.at}),
            [SavedRow(row.arm, row.control, {step: cell(at) for step, at in row.at.items()}) for row in rows],
        )
        for metric, rows in grouped((row.metric, row) for row in saved).items()
    ]

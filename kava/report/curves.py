"""What the stages logged while training, as rows for the charts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kava.report.clean import Row
from kava.report.finished import LOGGED, Logged, Runs
from kava.report.notices import Notice

# A chart a few hundred pixels wide shows no more; a step logged every time would make the page megabytes.
POINTS = 200


@dataclass(frozen=True)
class CurveRow(Row):
    """A logged step of a run's stage; a value is None where it was not logged or is not finite."""

    arm: str
    seed: str
    stage: str
    step: int
    values: Mapping[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {"arm": self.arm, "seed": self.seed, "stage": self.stage, "step": self.step, **self.values}


def _thin(rows: Sequence[Logged], limit: int) -> Sequence[Logged]:
    """At most `limit` rows, evenly spaced, the first and the last among them."""
    if len(rows) <= limit:
        return rows
    return [rows[round(i * (len(rows) - 1) / (limit - 1))] for i in range(limit)]


def _shown(value: float | None) -> float | None:
    # Five digits are more than a pixel shows.
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def curves(runs: Runs) -> tuple[list[CurveRow], list[Notice]]:
    """Logged curves of all runs (arm → seed → run), and a notice for each with values that are not finite.

    Of each stage, `pretrain` or `distill`, there are at most `POINTS` steps.
    """
    rows: list[CurveRow] = []
    notices: list[Notice] = []
    for arm, seeds in runs.items():
        for seed, run in seeds.items():
            for stage, training in (("pretrain", run.pretrain), ("distill", run.distill)):
                logged = training.logged if training else ()
                for at in _thin(logged, POINTS):
                    values = {name: _shown(at.values.get(name)) for name in LOGGED}
                    rows.append(CurveRow(arm, seed, stage, at.step, values))
                for name in LOGGED:
                    broken = [at.step for at in logged if not math.isfinite(at.values.get(name, 0.0))]
                    if broken:
                        text = f"{name} was not a finite number, logged steps affected: {len(broken)}, the first at "
                        notices.append(Notice(arm, seed, stage, f"{text}step {broken[0]}."))
    return rows, notices

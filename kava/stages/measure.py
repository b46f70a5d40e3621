"""Measure the alignment of a distilled student anew, where the metrics have changed since.

    kava measure --preset demo --arm structured --seed 42

`distill` measures what it has made; this stage is planned for finished students that other metrics have measured, so
that a new metric trains nothing. Writes results/<experiment>/<arm>/seed-<n>/student/alignment.json.
"""

import argparse
import sys

from kava.config.jobs import Job, Jobs
from kava.stages.common import Run, stage_main
from kava.stages.selection import ARM_OPTIONS, arm_and_seed


def main(argv: list[str] | None = None) -> int:
    def select(plan: Jobs, arguments: argparse.Namespace) -> Job:
        return plan.measure(*arm_and_seed(plan, arguments))

    return stage_main("measure", __doc__, argv, select, _body, ARM_OPTIONS)


def _body(_arguments: argparse.Namespace) -> Run:
    from kava.training.measure import run

    return run


if __name__ == "__main__":
    sys.exit(main())

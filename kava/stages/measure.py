"""Measure the alignment of a distilled student anew, where the metrics have changed since.

    kava measure --preset demo --arm structured --seed 42

`distill` measures what it has made; this stage is planned for finished students that other metrics have measured, so
that a new metric trains nothing. Writes results/<experiment>/<arm>/seed-<n>/student/alignment.json.
"""

import argparse
import sys

from kava.config.job import Job
from kava.config.jobs import Jobs
from kava.stages.common import stage_main
from kava.stages.selection import ARM_OPTIONS, arm_and_seed


def main(argv: list[str] | None = None) -> int:
    return stage_main("measure", __doc__, argv, _chosen, options=ARM_OPTIONS)


def _chosen(jobs: Jobs, given: argparse.Namespace) -> Job:
    return jobs.measure(*arm_and_seed(jobs, given))


if __name__ == "__main__":
    sys.exit(main())

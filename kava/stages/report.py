"""Compare the arms: results/ab_report.html, one self-contained page, and results/ab_report.json with its numbers.

    kava report --preset demo
    kava report results/exp-a results/exp-b        # one report over finished experiments; `kava report DIR --help`

Writes results/<experiment>/record.yaml, too: what the experiment was, and what it found.
"""

import argparse
import sys

from kava.config.jobs import Job, Jobs
from kava.stages.common import Run, stage_main


def main(argv: list[str] | None = None) -> int:
    def select(plan: Jobs, arguments: argparse.Namespace) -> Job:  # noqa: ARG001
        return plan.report

    return stage_main("report", __doc__, argv, select, _body)


def _body(_arguments: argparse.Namespace) -> Run:
    from kava.report.write import run

    return run


if __name__ == "__main__":
    sys.exit(main())

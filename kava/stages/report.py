"""Compare the arms: results/ab_report.html, one self-contained page, and results/ab_report.json with its numbers.

    kava report --preset demo
    kava report results/exp-a results/exp-b        # one report over finished experiments; `kava report DIR --help`

Writes results/<experiment>/record.yaml, too: what the experiment was, and what it found.
"""

import sys

from kava.stages.common import stage_main


def main(argv: list[str] | None = None) -> int:
    return stage_main("report", __doc__, argv, lambda jobs, _: jobs.report)


if __name__ == "__main__":
    sys.exit(main())

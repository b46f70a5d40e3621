"""Judge one model by the test questions: its answers, or with data.kind text how likely the right ones are to it.

    kava evaluate --preset demo --arm structured --seed 42
    kava evaluate --preset demo --reference teacher        # or student_base

Answers are greedy, 0-shot, and scored by lm-evaluation-harness's own filters. Writes evaluation/: samples.jsonl (one
line per question), manifest.json; and the numbers into the model card of an arm's student, student/README.md.
"""

import argparse
import sys

from kava.config.jobs import Job, Jobs
from kava.stages.common import Run, after, stage_main
from kava.stages.selection import ARM_OPTIONS, arm_and_seed


def main(argv: list[str] | None = None) -> int:
    def select(plan: Jobs, arguments: argparse.Namespace) -> Job:
        if arguments.reference is None:
            return plan.evaluate(*arm_and_seed(plan, arguments))
        return plan.reference(arguments.reference)

    options = ARM_OPTIONS | {"reference": "`teacher` or `student_base`, in place of an arm"}
    return stage_main("evaluate", __doc__, argv, select, _body, options, "wait")


def _body(_arguments: argparse.Namespace) -> Run:
    from kava.evaluation.evaluate import run
    from kava.plan.check import check_fits

    return after(check_fits, run)


if __name__ == "__main__":
    sys.exit(main())

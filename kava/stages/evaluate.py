"""Judge one model by the test questions: its answers, or with data.kind text how likely the right ones are to it.

    kava evaluate --preset demo --arm structured --seed 42
    kava evaluate --preset demo --reference teacher        # or student_base, or a name of `references`

Answers are greedy, 0-shot, and scored by lm-evaluation-harness's own filters; with evaluation.generate: false none are
written. Every gold answer is scored: its negative log-likelihood per token, and at how many of its tokens the likeliest
one is the teacher's, whose own evaluation comes first. Writes evaluation/: samples.jsonl (one line per question),
manifest.json; with evaluation.at_steps also at_steps.jsonl, of the student at these steps and the validation questions;
and the numbers into the model card of an arm's student, student/README.md.
"""

import argparse
import sys

from kava.config.job import Job
from kava.config.jobs import Jobs
from kava.stages.common import stage_main
from kava.stages.selection import ARM_OPTIONS, arm_and_seed

OPTIONS = ARM_OPTIONS | {"reference": "`teacher`, `student_base` or a name of `references`, in place of an arm"}


def main(argv: list[str] | None = None) -> int:
    return stage_main("evaluate", __doc__, argv, _chosen, options=OPTIONS, beside_others="wait", fits=True)


def _chosen(jobs: Jobs, given: argparse.Namespace) -> Job:
    return jobs.reference(given.reference) if given.reference else jobs.evaluate(*arm_and_seed(jobs, given))


if __name__ == "__main__":
    sys.exit(main())

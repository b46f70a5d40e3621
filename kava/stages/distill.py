"""Distil the student of one arm: cross entropy, and its KV drawn to the projected teacher KV.

    kava distill --preset demo --arm structured --seed 42

Loads the student and the projector, reads the teacher's KV from the store, and writes
results/<experiment>/<arm>/seed-<n>/student/: a model that `AutoModelForCausalLM.from_pretrained` loads, its tokenizer
and card, projector/, metrics.jsonl, manifest.json.
"""

import argparse
import sys

from kava.config.jobs import Job, Jobs
from kava.stages.common import Run, after, stage_main
from kava.stages.selection import ARM_OPTIONS, arm_and_seed


def main(argv: list[str] | None = None) -> int:
    def select(plan: Jobs, arguments: argparse.Namespace) -> Job:
        return plan.distill(*arm_and_seed(plan, arguments))

    return stage_main("distill", __doc__, argv, select, _body, ARM_OPTIONS)


def _body(_arguments: argparse.Namespace) -> Run:
    from kava.plan.check import check_fits
    from kava.training.distill import run

    return after(check_fits, run)


if __name__ == "__main__":
    sys.exit(main())

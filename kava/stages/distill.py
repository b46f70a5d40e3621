"""Distil the student of one arm: cross entropy, and its KV drawn to the projected teacher KV.

    kava distill --preset demo --arm structured --seed 42

Loads the student and the projector, reads the teacher's KV from the store, and writes
results/<experiment>/<arm>/seed-<n>/student/: a model that `AutoModelForCausalLM.from_pretrained` loads, its tokenizer
and card, projector/, metrics.jsonl, manifest.json; and at_steps/<step>/, a whole model each, for evaluation.at_steps.
"""

import argparse
import sys

from kava.config.job import Job
from kava.config.jobs import Jobs
from kava.stages.common import stage_main
from kava.stages.selection import ARM_OPTIONS, arm_and_seed


def main(argv: list[str] | None = None) -> int:
    return stage_main("distill", __doc__, argv, _chosen, options=ARM_OPTIONS, fits=True)


def _chosen(jobs: Jobs, given: argparse.Namespace) -> Job:
    return jobs.distill(*arm_and_seed(jobs, given))


if __name__ == "__main__":
    sys.exit(main())

"""Pretrain the projector of one arm on the frozen student's own KV.

    kava pretrain --preset demo --arm structured --seed 42

Loads the student alone, reads the teacher's KV from the store, and writes
results/<experiment>/<arm>/seed-<n>/projector/: projector.safetensors, config.json, metrics.jsonl, manifest.json.
"""

import argparse
import sys

from kava.config.jobs import Job, Jobs
from kava.stages.common import Run, after, stage_main
from kava.stages.selection import ARM_OPTIONS, arm_and_seed


def main(argv: list[str] | None = None) -> int:
    def select(plan: Jobs, arguments: argparse.Namespace) -> Job:
        return plan.pretrain(*arm_and_seed(plan, arguments))

    return stage_main("pretrain", __doc__, argv, select, _body, ARM_OPTIONS)


def _body(_arguments: argparse.Namespace) -> Run:
    from kava.plan.check import check_fits
    from kava.training.pretrain import run

    return after(check_fits, run)


if __name__ == "__main__":
    sys.exit(main())

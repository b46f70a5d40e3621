"""Pretrain the projector of one arm on the frozen student's own KV.

    kava pretrain --preset demo --arm structured --seed 42

Loads the student alone, reads the teacher's KV from the store, and writes
results/<experiment>/<arm>/seed-<n>/projector/: projector.safetensors, config.json, metrics.jsonl, manifest.json.
"""

import argparse
import sys

from kava.config.job import Job
from kava.config.jobs import Jobs
from kava.stages.common import stage_main
from kava.stages.selection import ARM_OPTIONS, arm_and_seed


def main(argv: list[str] | None = None) -> int:
    return stage_main("pretrain", __doc__, argv, _chosen, options=ARM_OPTIONS, fits=True)


def _chosen(jobs: Jobs, given: argparse.Namespace) -> Job:
    return jobs.pretrain(*arm_and_seed(jobs, given))


if __name__ == "__main__":
    sys.exit(main())

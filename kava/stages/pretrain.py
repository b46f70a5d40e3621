"""Pretrain the projector of one arm on the frozen student's own KV.

    kava pretrain --preset demo --arm structured --seed 42

Loads the student alone, reads the teacher's KV from the store, and writes
results/<experiment>/<arm>/seed-<n>/projector/: projector.safetensors, config.json, metrics.jsonl, manifest.json.
"""

import argparse
import sys

from kava.config.jobs import Job, Plan, Runtime
from kava.stages.common import stage_main
from kava.stages.selection import ARM_OPTIONS, arm_and_seed


def main(argv: list[str] | None = None) -> int:
    def select(plan: Plan, arguments: argparse.Namespace) -> Job:
        return plan.pretrain(*arm_and_seed(plan, arguments))

    return stage_main("pretrain", __doc__, argv, select, lambda _: run, ARM_OPTIONS)


def run(job: Job, runtime: Runtime) -> None:
    from kava.plan.check import check_fits
    from kava.plan.positions import check_positions
    from kava.training.finish import finish
    from kava.training.phase import run_phase
    from kava.training.processes import is_main_process

    if is_main_process():
        check_fits(job, runtime)
        check_positions(job, runtime)
        job.output.unlink(missing_ok=True)  # what it vouches for is about to change
    folder = job.output.parent
    model, _, manifest = run_phase(job, runtime)
    if not is_main_process():
        return
    assert model.projector is not None
    model.projector.save(folder)
    finish(job.output, manifest, ["projector.safetensors", "config.json"], model)


if __name__ == "__main__":
    sys.exit(main())

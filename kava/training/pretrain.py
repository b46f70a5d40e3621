"""Pretrain the projector of one arm on the frozen student."""

import logging

from kava.config.job import Job, Runtime
from kava.config.specs import PretrainSpec
from kava.data.positions import check_positions
from kava.training.finish import finish
from kava.training.phase import run_phase
from kava.training.processes import is_main_process

log = logging.getLogger("kava")


def run(job: Job[PretrainSpec], runtime: Runtime) -> None:
    if is_main_process():
        check_positions(job, runtime)
        job.output.unlink(missing_ok=True)  # what it vouches for is about to change
    folder = job.output.parent
    model, _, manifest = run_phase(job, runtime)
    if not is_main_process():
        return
    assert model.projector is not None
    model.projector.save(folder)
    seconds = manifest.pop("seconds", None)
    finish(job.output, manifest, ["projector.safetensors", "config.json"], model, seconds)

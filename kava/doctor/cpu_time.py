"""How long a run would take on this machine's CPU: its floating-point operations over a rate that is measured."""

import time
from functools import cache
from typing import Final

import torch

from kava.config.jobs import Jobs
from kava.config.schema import Config
from kava.config.training import ClosedForm, Distill, Pretrain
from kava.errors import UserError
from kava.plan.geometry import read_geometry
from kava.plan.tokens import count_tokens, test_rows
from kava.plan.trace import parameter_counts
from kava.tasks import task_of

# Share of the rate of one large product that a model's forwards and backwards reach.
REACHED: Final = 0.5
# What whole models gain at most from units for bf16, however fast one product is: the rest is bound by memory.
BF16_GAIN: Final = 4.0
# Of a stage's process before it computes, and of a forward and backward of a model of any size; the demo's, measured.
STAGE_SECONDS, FORWARD_SECONDS = 15.0, 0.1
UNITS: Final = ((86400, "days"), (3600, "hours"), (60, "minutes"))


def run_seconds(config: Config) -> float | None:
    """Seconds of all stages, one after the other in one thread each, as Snakemake runs them; None if not to be known.

    An estimate, good to a factor of two or three: projectors are not counted, and answers are as long as they may be.
    """
    try:
        teacher, student = parameters(config)
        count = count_tokens(Jobs(config))
        tokens = count.tokens / max(1, count.examples)
        questions = test_rows(config)
    except UserError:
        return None
    # An answer that is judged by its likelihood is read, and none is written.
    longest = tokens / 3 + config.evaluation.max_new_tokens if task_of(config.data.kind).harness else tokens
    answers = questions * longest
    seconds = _seconds(2 * teacher * (count.tokens + answers), config.teacher.dtype)
    runs, stages = len(config.seeds), 5
    seconds += _seconds(2 * student * answers, "float32") * (1 + runs * len(config.arms))
    for arm in config.arms.values():
        stages += (3 if arm.aligner else 2) * runs
        # Operations per parameter and token: forward 2, backward 4 or (frozen weights) 2, forward again 2.
        trained = (4 if config.student.lora else 6) + 2 * config.distill.gradient_checkpointing
        phases: list[tuple[Distill | Pretrain, int]] = [(config.distill, trained)]
        if arm.aligner and arm.pretrain_projector:
            phases.append((config.pretrain.as_phase(), 2))
            if isinstance(config.pretrain, ClosedForm):
                seconds += runs * _seconds(2 * student * count.tokens, "float32")
        for settings, of_parameter in phases:
            forwards = settings.steps * settings.accumulation
            flops = of_parameter * student * forwards * settings.batch_size * tokens
            seconds += runs * (_seconds(flops, settings.precision) + FORWARD_SECONDS * forwards)
    return seconds + STAGE_SECONDS * stages


def parameters(config: Config) -> tuple[int, int]:
    """Parameters of teacher and student; `UserError` if their settings cannot be read."""
    teacher, student = (read_geometry(settings) for settings in (config.teacher, config.student))
    return parameter_counts(teacher).all, parameter_counts(student).all


def roughly(seconds: float) -> str:
    """`about 20 minutes`, `about 3 hours`, `about 12 days`: no more digits than an estimate has."""
    size, unit = next((u for u in UNITS if seconds >= 1.5 * u[0]), UNITS[-1])
    number = max(2, round(seconds / size))
    digits = len(str(number)) - 2
    return f"about {round(number, -digits) if digits > 0 else number} {unit}"


def _seconds(flops: float, dtype: str) -> float:
    rate = flops_per_second(dtype)
    if dtype != "float32":
        rate = min(rate, BF16_GAIN * flops_per_second("float32"))
    return flops / (REACHED * rate)


@cache
def flops_per_second(dtype: str) -> float:
    """Rate of a product of large matrices in one thread, measured once; CPUs without bf16 units emulate it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = (torch.randn(size, 1024).to(getattr(torch, dtype)) for size in (256, 1024))
        a @ b  # the first one allocates
        times = []
        for _ in range(3):
            started = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return 2 * 256 * 1024 * 1024 / min(times)

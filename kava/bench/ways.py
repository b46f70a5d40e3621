"""A step of distillation from the store against one for which the teacher reads the batch.

Two ways are online: in the step, as a training loop with a teacher does it, and ahead of the step, in the thread that
otherwise reads the store. The second pays where there is something idle to compute on, such as another core.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, Final

import torch

from kava.bench.online import Stopwatch, live_teacher
from kava.bench.setting import WARM_UP
from kava.bench.workspace import free, quiet
from kava.config.job import Job, Runtime
from kava.device import choose_device, peak_memory_mib
from kava.models.load import load_teacher, second_model_allowed
from kava.training.journal import MetricsFile
from kava.training.phase import run_phase

COMPARED: Final = ("loss", "ce", "kv")
WAYS: Final = ("store", "online", "online_ahead")


@dataclass(frozen=True)
class TimedRun:
    """One run of one way.

    Attributes
    ----------
    records
        Lines of `metrics.jsonl`, one per step.
    manifest
        Of the phase.
    teacher_seconds
        Of the teacher's forwards, per step.
    peak_mib
        Peak of the GPU's allocator; None on a CPU.
    """

    records: list[dict[str, Any]]
    manifest: dict[str, Any]
    teacher_seconds: float | None
    peak_mib: float | None

    @property
    def step_seconds(self) -> list[float]:
        """Of the steps after the warm-up."""
        ends = [0.0, *(record["seconds"] for record in self.records)]
        return [end - start for start, end in pairwise(ends)][WARM_UP:]

    @property
    def data_wait_share(self) -> float:
        """Share of those steps in which the student waited for a batch."""
        waits = [record["data_wait"] for record in self.records[WARM_UP:]]
        spent = self.step_seconds
        return sum(wait * seconds for wait, seconds in zip(waits, spent, strict=True)) / sum(spent)


def measure_ways(job: Job, runtime: Runtime, rounds: int, tell: Callable[[str], object]) -> dict[str, Any]:
    """Run each way `rounds` times in turn, each time all steps of the phase from the same start.

    Parameters
    ----------
    job
        Of stage `distill`; logs every step.
    runtime
        Where models lie, and the device.
    rounds
        Runs of each way; each round begins with another way.
    tell
        Called with a sentence before each run.

    Returns
    -------
    dict
        By name of `WAYS`: `step_seconds`, the median over steps of each one's best round, since what else a machine
        does only adds time; `tokens_per_second`, `data_wait_share`, `teacher_seconds` (per step, in the best run; null
        from the store),
        `peak_memory_mib` (null on a CPU) and `out_of_memory`. Of the online ways also `ratio`, their steps over those
        from the store, in their best rounds; `ratios`, those of the medians of each round; and `losses`, compared with
        those from the store.
    """
    runs: dict[str, list[TimedRun]] = {way: [] for way in WAYS}
    for number in range(rounds):
        first = number % len(WAYS)
        for way in (*WAYS[first:], *WAYS[:first]):
            tell(f"round {number + 1} of {rounds}: {job.spec.distill.steps} steps, {way.replace('_', ', ')}")
            output = job.output.parent / f"{way}-{number}" / "manifest.json"
            runs[way].append(_run(way, replace(job, output=output), runtime))
    found = {way: _figures(of_way) for way, of_way in runs.items()}
    store = _best_steps(runs["store"])
    for way in WAYS[1:]:
        pairs = zip(runs["store"], runs[way], strict=True)
        found[way] |= {
            "ratio": sum(_best_steps(runs[way])) / sum(store),
            "ratios": [median(online.step_seconds) / median(stored.step_seconds) for stored, online in pairs],
            "losses": _losses(runs["store"][0].records, runs[way][0].records),
        }
    return found


def _best_steps(runs: list[TimedRun]) -> list[float]:
    """Seconds of each step in the round in which it was fastest: a step reads the same examples in all of them."""
    return [min(of_step) for of_step in zip(*(run.step_seconds for run in runs), strict=True)]


def _run(way: str, job: Job, runtime: Runtime) -> TimedRun:
    device = choose_device(runtime.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with quiet():
        if way == "store":
            manifest, seconds = run_phase(job, runtime)[2], None
        else:
            manifest, seconds = _online(job, runtime, device, ahead=way == "online_ahead")
    peak = peak_memory_mib(device) if device.type == "cuda" else None
    free(device)
    return TimedRun(MetricsFile(job.output.parent / "metrics.jsonl").read(), manifest, seconds, peak)


def _online(job: Job, runtime: Runtime, device: torch.device, ahead: bool) -> tuple[dict[str, Any], float]:
    """Manifest, and seconds of the teacher per step."""
    with second_model_allowed():
        watch = Stopwatch(device)
        teacher = load_teacher(runtime.teacher, device)
        _, _, manifest = run_phase(job, runtime, partial(live_teacher, teacher, watch, ahead))
    return manifest, watch.seconds() / manifest["optimizer_steps"]


def _figures(runs: list[TimedRun]) -> dict[str, Any]:
    seconds = median(_best_steps(runs))
    facts = runs[0].manifest
    peaks = [run.peak_mib for run in runs if run.peak_mib is not None]
    forwards = [run.teacher_seconds for run in runs if run.teacher_seconds is not None]
    return {
        "step_seconds": seconds,
        "tokens_per_second": facts["train_tokens"] / facts["optimizer_steps"] / seconds,
        "data_wait_share": median(run.data_wait_share for run in runs),
        "teacher_seconds": min(forwards, default=None),
        "peak_memory_mib": max(peaks, default=None),
        "out_of_memory": [event for run in runs for event in run.manifest["out_of_memory"]],
    }


def _losses(store: list[dict[str, Any]], online: list[dict[str, Any]]) -> dict[str, Any]:
    """How far the losses of both ways are apart, relative to the store's: in the first step, and at most."""
    found = {}
    for name in COMPARED:
        if store[0][name] is None:
            continue
        apart = [abs(o[name] - s[name]) / abs(s[name]) for s, o in zip(store, online, strict=True)]
        found[name] = {
            "store": store[0][name],
            "online": online[0][name],
            "difference_first_step": apart[0],
            "difference_largest": max(apart),
        }
    return found

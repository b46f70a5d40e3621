"""Measure the peak memory of every stage, each in a process of its own.

    kava bench memory
    kava bench memory --preset qwen2.5-8gb --output memory.json
    kava bench memory --preset qwen2.5-8gb --random-weights --tokenizer DIR --set data.path=DIR

Runs the real stages for a few steps on the longest examples of the data, in a temporary folder, every loss at full
weight. On a GPU torch's allocator is capped at the budget minus 1 GiB, as if the GPU were no larger: its peaks are
shown, and what NVML says of the device. On a CPU the live tensors are counted. What `kava plan` says stands beside.
"""

import argparse
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kava.bench.setting import bench_a_run, count_of, show_machine
from kava.config.job import Job
from kava.config.jobs import Jobs
from kava.config.schema import Config
from kava.config.training import ClosedForm, Distill, Pretrain
from kava.text import table as columns

log = logging.getLogger("kava")
# The second one meets gradients and optimizer states as every later one does.
STEPS = 2
# What may be measured of what `kava plan` says of the allocator.
MEASURES = ("reserved_mib", "allocated_mib", "tensors_mib")


def main(argv: list[str] | None = None) -> int:
    steps = count_of("steps", STEPS, "optimizer steps of each phase")
    return bench_a_run("memory", __doc__, argv, _measure, table, steps)


def _measure(config: Config, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from kava.bench.stage_process import run_measured
    from kava.bench.workspace import BenchJobs, quiet
    from kava.config.job import Runtime
    from kava.data import tokenize
    from kava.files import read_json
    from kava.plan.overview import needs

    small, longest = _few(config, arguments.steps, folder)
    jobs, runtime = BenchJobs(small, folder), Runtime.of(small)
    with quiet():
        tokenize.run(jobs.tokenize, runtime)
    # As configured, but for what was measured: the longest example, and every loss at full weight.
    as_configured = small.model_copy(update={"max_length": longest, "data": config.data})
    planned = {(stage, arm): need.memory() for stage, arm, need in needs(as_configured)}
    stages = []
    for stage, arm, job in _in_order(jobs):
        log.info("%s %s", stage, arm)
        missing = [name for name, path in job.inputs.items() if not path.is_file()]
        if missing:
            row: dict[str, Any] = {"error": f"{missing[0]} is missing: its stage failed"}
        else:
            row = run_measured(job, runtime, folder)
            done = read_json(job.output) if job.output.is_file() else {}
            row["out_of_memory"] = done.get("out_of_memory", [])
        memory = planned[stage, arm]
        said = {"allocator_mib": memory.allocator / 2**20, "peak_mib": memory.peak / 2**20}
        stages.append({"stage": stage, "arm": arm} | row | {"planned": said})
    return {
        "stages": stages,
        "steps": arguments.steps,
        "budget_gib": config.vram_budget_gib,
        "longest_example_tokens": longest,
    }


def _few(config: Config, steps: int, folder: Path) -> tuple[Config, int]:
    """The configuration for so many steps on the longest examples, and the tokens of the longest."""
    from kava.bench.longest import longest_rows
    from kava.bench.workspace import on_rows

    phases: dict[str, Pretrain | Distill] = {"pretrain": config.pretrain.as_phase(), "distill": config.distill}
    examples = steps * max(of_phase.batch_size * of_phase.accumulation for of_phase in phases.values())
    held_out = max(of_phase.batch_size for of_phase in phases.values())
    rows, longest = longest_rows(config, examples, held_out, config.evaluation.batch_size)
    few = {"steps": steps, "log_every": 1, "save_every": steps, "num_processes": 1}
    changes: dict[str, Any] = {name: of_phase.model_copy(update=few) for name, of_phase in phases.items()}
    if isinstance(config.pretrain, ClosedForm):
        changes["pretrain"] = config.pretrain
    changes["arms"] = {name: arm.at_full_weight() for name, arm in config.arms.items()}
    return on_rows(config, rows, folder / "data").model_copy(update=changes), longest


def _in_order(jobs: Jobs) -> Iterator[tuple[str, str, Job]]:
    """Stage, arm and job, in an order in which each finds what it reads; names are those of `kava plan`."""
    arms, seed = jobs.config.arms, jobs.config.seeds[0]
    yield "extract", "", jobs.extract
    for arm, settings in arms.items():
        if settings.aligner:
            yield "pretrain", arm, jobs.pretrain(arm, seed)
    for arm in arms:
        yield "distill", arm, jobs.distill(arm, seed)
    yield "evaluate teacher", "", jobs.reference("teacher")
    yield "evaluate student", "", jobs.evaluate(next(iter(arms)), seed)


def table(figures: Mapping[str, Any]) -> str:
    """The figures for a terminal, in MiB."""
    stages = figures["stages"]
    measured = [name for name in (*MEASURES, "device_mib") if any(name in row for row in stages)]
    first = next((name for name in measured if name in MEASURES), None)
    lines = [["MiB at the peak", "arm", *(name.removesuffix("_mib") for name in measured), "planned", "of planned"]]
    for row in stages:
        cells = [row["stage"], row["arm"], *(f"{row[name]:,.1f}" if name in row else "" for name in measured)]
        planned = row["planned"]["allocator_mib"]
        cells += [f"{planned:,.1f}", f"{row[first] / planned:.2f}"] if first in row else ["", ""]
        lines.append(cells)
    return "\n".join([columns(lines, left=2), "", *_notes(figures, measured)])


def _notes(figures: Mapping[str, Any], measured: list[str]) -> list[str]:
    notes = []
    for row in figures["stages"]:
        name = f"{row['stage']} {row['arm']}".strip()
        if row["error"]:
            notes.append(f"{name} did not finish: {row['error']}")
        notes += [
            f"{name}: memory ran out at step {event['step']}; from there {event['batch_size']} examples per forward"
            for event in row.get("out_of_memory", [])
        ]
    notes.append(
        f"{figures['steps']} steps on the longest examples ({figures['longest_example_tokens']} tokens at most), every "
        "loss at full weight."
    )
    if "tensors_mib" in measured:
        notes.append("tensors: bytes of live tensors, weights included; not libraries, nor what is read ahead.")
    else:
        notes.append(
            f"Budget {figures['budget_gib']:g} GiB, of which torch's allocator had all but 1. device: what NVML says, "
            "CUDA context and paged optimizer states included."
        )
    return [*notes, show_machine(figures["setup"]) + "."]

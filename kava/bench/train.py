"""Measure what the store saves: a distillation step from it against one for which the teacher reads the batch.

    kava bench train
    kava bench train --preset qwen2.5-8gb --steps 20 --arm structured --output train.json
    kava bench train --preset qwen2.5-8gb --random-weights --tokenizer DIR --set data.path=DIR

Runs the real stages on as many real examples as the steps take, in a temporary folder: extraction, in turn with the
teacher's bare forward over the same batches; then distillation from the store, in turn with the teacher online, where
both models are resident and the teacher reads each micro-batch in one forward: in the step, or ahead of it in the
background. All train the same arm on the same examples in the same order, and every step compares KV. Their losses
show whether they do the same.
"""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kava.bench.setting import WARM_UP, bench_a_run, count_of, show_machine
from kava.commandline import option
from kava.config.schema import Config
from kava.errors import UserError
from kava.text import table as columns

log = logging.getLogger("kava")
STEPS, ROUNDS = 20, 3
TITLES = {"store": "from the store", "online": "teacher in the step", "online_ahead": "teacher ahead"}


def main(argv: list[str] | None = None) -> int:
    steps = count_of("steps", STEPS, "optimizer steps of each run")
    rounds = count_of("rounds", ROUNDS, "runs of each way, in turn")
    arm = option("--arm", help="arm to train (default: the first that compares KV)")
    return bench_a_run("train", __doc__, argv, _measure, table, steps, rounds, arm)


def _measure(config: Config, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from kava.bench.extraction import measure_extraction
    from kava.bench.ways import measure_ways
    from kava.bench.workspace import BenchJobs, free, quiet
    from kava.config.job import Runtime
    from kava.data import tokenize
    from kava.device import choose_device
    from kava.training import pretrain

    if arguments.steps <= WARM_UP:
        raise UserError(f"--steps {arguments.steps}: the first {WARM_UP} warm up; at least {WARM_UP + 1} are needed")
    arm = choose_arm(config, arguments.arm)
    small = _few(config, arm, arguments.steps, folder)
    jobs, runtime, seed = BenchJobs(small, folder), Runtime.of(small), small.seeds[0]
    device = choose_device(small.device)
    log.info("tokenizing %d examples, then extracting them %d times", small.data.train, arguments.rounds)
    with quiet():
        tokenize.run(jobs.tokenize, runtime)
        extraction = measure_extraction(jobs.extract, runtime, arguments.rounds)
        free(device)
        if small.arms[arm].aligner:
            pretrain.run(jobs.pretrain(arm, seed), runtime)
            free(device)
    ways = measure_ways(jobs.distill(arm, seed), runtime, arguments.rounds, log.info)
    settings = small.distill
    return {
        "arm": arm,
        "steps": arguments.steps,
        "warm_up_steps": WARM_UP,
        "rounds": arguments.rounds,
        "examples_per_step": settings.batch_size * settings.accumulation,
        "distill": ways,
        "extraction": extraction,
        "break_even_passes": _break_even(ways, extraction),
    }


def choose_arm(config: Config, name: str | None) -> str:
    """The arm that was asked for, or the first one that can be compared.

    Raises
    ------
    UserError
        There is no such arm, or the online way cannot do what it does.
    """
    if name is None:
        able = [arm for arm in config.arms if _why_not(config, arm) is None]
        if not able:
            reasons = "; ".join(f"{arm} {_why_not(config, arm)}" for arm in config.arms)
            raise UserError(f"no arm compares whole teacher KV with its own example: {reasons}")
        return able[0]
    if name not in config.arms:
        raise UserError(f"--arm {name}: no such arm; arms are: {', '.join(config.arms)}")
    if reason := _why_not(config, name):
        raise UserError(f"--arm {name}: the arm {reason}; choose another")
    return name


def _why_not(config: Config, name: str) -> str | None:
    """What keeps the online way from giving an arm what the store gives; None if nothing does."""
    arm = config.arms[name]
    if (arm.aligner is None or arm.kv_weight == 0) and not arm.auxiliary.cka:
        return "compares no KV, and needs no teacher while it trains"
    if arm.teacher_kv != "matched":
        return "reads another example's KV; it costs what the arm with its own does"
    if config.student_reasoning != "full":
        return f"lays KV onto other tokens (student_reasoning: {config.student_reasoning})"
    for where, select in (("kv.select", config.kv.select), ("select", arm.select)):
        if select is not None and select.kind != "full":
            return f"compares some tokens only ({where}: {select.kind})"
    stored = [name for name, settings in arm.auxiliary if settings and settings.needs]
    if arm.aligner is not None and arm.loss.weights == "importance":
        stored.append("importance")
    if stored:
        return f"reads more of the teacher than its KV ({', '.join(stored)})"
    return None


def _few(config: Config, arm: str, steps: int, folder: Path) -> Config:
    """The configuration for so many steps of one arm, each of them logged, on the first training examples."""
    from kava.bench.workspace import on_rows
    from kava.data.rows import load_rows

    rows = load_rows(config.data).splits
    needed = steps * config.distill.batch_size * config.distill.accumulation
    # A few held-out examples: a phase ends in measuring on them.
    held_out = config.distill.batch_size
    chosen = {"train": rows["train"][:needed], "validation": rows["validation"][:held_out], "test": rows["test"][:1]}
    log_each = {"steps": steps, "log_every": 1, "save_every": steps, "num_processes": 1}
    settings = {
        "arms": {arm: config.arms[arm].at_full_weight(pretrain_projector=False)},
        "distill": config.distill.model_copy(update=log_each),
        "comparisons": None,
    }
    return on_rows(config, chosen, folder / "data").model_copy(update=settings)


def _break_even(ways: Mapping[str, Any], extraction: Mapping[str, Any]) -> float | None:
    """Passes over the data after which the time of extraction is won back; None if steps from the store win none."""
    won = 1 / ways["online"]["tokens_per_second"] - 1 / ways["store"]["tokens_per_second"]
    return 1 / extraction["extract_tokens_per_second"] / won if won > 0 else None


def table(figures: Mapping[str, Any]) -> str:
    """The figures for a terminal."""
    ways, extraction = figures["distill"], figures["extraction"]
    lines = [("distillation", "step", "ratio", "between", "tokens/s", "waits for data", "teacher per step")]
    for name, title in TITLES.items():
        way = ways[name]
        ratio = _ratio(way) if "ratio" in way else ("1", "")
        teacher = "" if way["teacher_seconds"] is None else _seconds(way["teacher_seconds"])
        numbers = (f"{way['tokens_per_second']:,.0f}", f"{way['data_wait_share']:.1%}")
        lines.append((title, _seconds(way["step_seconds"]), *ratio, *numbers, teacher))
    rates = [
        ("extraction", "tokens/s", "ratio", "between"),
        ("teacher's bare forward", f"{extraction['forward_tokens_per_second']:,.0f}", "1", ""),
        ("forward, encoded and stored", f"{extraction['extract_tokens_per_second']:,.0f}", *_ratio(extraction)),
    ]
    tables = [columns(rows, left=1) for rows in (lines, rates, _losses(ways))]
    return "\n\n".join([*tables, "\n".join(_notes(figures))])


def _ratio(of: Mapping[str, Any]) -> tuple[str, str]:
    return f"{of['ratio']:.2f}", f"{min(of['ratios']):.2f}–{max(of['ratios']):.2f}"


def _losses(ways: Mapping[str, Any]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [("losses, first step", *TITLES.values(), "apart", "at most, all steps")]
    of_ways = [ways[way]["losses"] for way in TITLES if way != "store"]
    for name, first in of_ways[0].items():
        shown = [f"{first['store']:.6f}", *(f"{losses[name]['online']:.6f}" for losses in of_ways)]
        apart = [max(losses[name][f"difference_{when}"] for losses in of_ways) for when in ("first_step", "largest")]
        lines.append((f"  {name}", *shown, *(f"{value:.1e}" for value in apart)))
    return lines


def _notes(figures: Mapping[str, Any]) -> list[str]:
    ways, passes, setup = figures["distill"], figures["break_even_passes"], figures["setup"]
    peaks = {title: ways[way]["peak_memory_mib"] for way, title in TITLES.items()}
    notes = [
        "Steps from the store are no faster here; extraction is not won back."
        if passes is None
        else f"Extraction is won back after {passes:.1f} passes over the data.",
        f"Arm {figures['arm']}; {figures['steps']} steps of {figures['examples_per_step']} examples, the first "
        f"{figures['warm_up_steps']} not counted, each way {figures['rounds']} times in turn.",
        "A step's time is that of its best round; ratios of the single rounds stand under `between`.",
        f"KV is stored as {setup['codec']['kind']}; the teacher's own is not coded.",
        show_machine(setup) + ".",
    ]
    if None not in peaks.values():
        notes.append("Peak GPU memory: " + ", ".join(f"{name} {peak:,.0f} MiB" for name, peak in peaks.items()) + ".")
    notes += [
        f"Memory ran out ({title}) at step {event['step']}; from there {event['batch_size']} examples per forward."
        for way, title in TITLES.items()
        for event in ways[way]["out_of_memory"]
    ]
    return notes


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"

"""A plan as a table for a reader, and as JSON values."""

from textwrap import wrap
from typing import Any

from kava.device import GIB
from kava.plan.memory import PARTS
from kava.plan.overview import Overview, StagePlan
from kava.text import size, table

WIDTH = 100


def as_json(plan: Overview) -> dict[str, Any]:
    """JSON values; memory in GiB (2³⁰ bytes), disk in GB (10⁹)."""
    disk, tokens = plan.disk, plan.tokens
    kept = {"store": disk.store, "checkpoints": disk.checkpoints, "models": disk.models, "free": disk.free}
    return {
        "vram_budget_gib": plan.budget_gib,
        "stages": {name.replace(" ", "_"): _stage(stage, plan.budget_gib) for name, stage in plan.stages.items()},
        "disk": {f"{name}_gb": round(count / 1e9, 3) for name, count in kept.items()}
        | {"store_is_there": disk.store_is_there},
        "tokens": {"examples": tokens.examples, "count": tokens.tokens, "known": tokens.known},
        "prompts": {"lack": plan.prompts.lack, "unknown": plan.prompts.unknown},
        "fits": plan.fits,
    }


def _stage(stage: StagePlan, budget_gib: float) -> dict[str, Any]:
    return {
        "peak_gib": _gib(stage.memory.peak),
        "parts": {name.replace(" ", "_"): _gib(count) for name, count in stage.memory.parts.items()},
        "allocator_gib": _gib(stage.memory.allocator),
        "paged_gib": _gib(stage.memory.paged),
        "fits": not stage.too_large,
        "arm": stage.largest,
        "arms": {name: _gib(peak) for name, peak in stage.peaks.items() if name},
        "streamed": stage.streamed,
        "too_large": stage.too_large if stage.largest else [],
        "lack": stage.memory.lack(budget_gib) if stage.too_large else None,
        "mends": [{"setting": fix.setting, "peak_gib": _gib(fix.peak), "fits": fix.fits} for fix in stage.fixes],
    }


def as_text(plan: Overview) -> str:
    """Table of memory, what breaks the budget and what fixes it, and the disk."""
    disk, tokens = plan.disk, plan.tokens
    estimate = "" if tokens.known else ", an estimate until they are tokenised"
    state = "sealed" if disk.store_is_there else "before entropy coding"
    lines = [_table(plan), "", *_notes(plan), ""]
    lines += [
        f"tokens       {tokens.tokens:>9,}  in {tokens.examples:,} examples{estimate}",
        f"store        {size(disk.store):>9}  {state}",
        f"checkpoints  {size(disk.checkpoints):>9}  of one run, until it ends",
        f"models       {size(disk.models):>9}  students and projectors of all runs",
        f"to write     {size(disk.to_write):>9}  beside downloads, which `kava fetch` shows",
        f"free         {size(disk.free):>9}",
    ]
    lines += wrap(f"positions    {plan.prompts}", WIDTH, subsequent_indent="             ")
    if disk.to_write > disk.free:
        lines.append(f"The disk lacks {size(disk.to_write - disk.free)}; set cache_dir to another one, or make room.")
    return "\n".join(lines)


def _table(plan: Overview) -> str:
    stages = plan.stages.values()
    rows = [["GiB", *plan.stages], ["largest arm", *(stage.largest or "" for stage in stages)]]
    for part in PARTS:
        counts = [stage.memory.parts.get(part) for stage in stages]
        if any(part in stage.memory.parts for stage in stages):
            rows.append([part, *(f"{count / GIB:.2f}" if count else "" for count in counts)])
    rows.append(["peak", *(f"{stage.memory.peak / GIB:.2f}" for stage in stages)])
    rows.append([f"fits {plan.budget_gib:g} GiB", *("no" if stage.too_large else "yes" for stage in stages)])
    return table(rows, left=1)


def _notes(plan: Overview) -> list[str]:
    lines = []
    for name, stage in plan.stages.items():
        if len(set(stage.peaks.values())) > 1:
            peaks = ", ".join(f"{arm} {peak / GIB:.2f}" for arm, peak in stage.peaks.items())
            lines += wrap(f"{name}: {peaks} GiB", WIDTH, subsequent_indent="  ")
        if stage.streamed:
            lines.append(f"{name}: the teacher is streamed, its weights are read from the disk layer by layer")
        if stage.memory.paged:
            lines.append(f"{name}: {stage.memory.paged / GIB:.2f} GiB of states are paged, and may leave the GPU")
    for name, stage in plan.stages.items():
        if stage.too_large:
            lines += wrap(_lack(name, stage, plan.budget_gib), WIDTH)
            lines.append("What would fix it, the least harmful first:")
            lines += [
                f"  {fix.peak / GIB:5.2f} GiB  {'fits  ' if fix.fits else 'no fit'}  {fix.setting}"
                for fix in stage.fixes
            ] or ["  nothing: take a smaller model or a larger GPU"]
    return lines or [f"Every stage of every arm fits {plan.budget_gib:g} GiB."]


def _lack(name: str, stage: StagePlan, budget_gib: float) -> str:
    who = f"{name} of {stage.largest}" if stage.largest else name
    others = [arm for arm in stage.too_large if arm != stage.largest]
    also = f" (too large as well: {', '.join(others)})" if others and stage.largest else ""
    return f"{who} {stage.memory.lack(budget_gib)}{also}."


def _gib(count: int) -> float:
    return round(count / GIB, 3)

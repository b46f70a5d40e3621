"""A plan as a table for a reader, and as JSON values."""

from textwrap import wrap
from typing import Any

from kava.device import GIB
from kava.plan.memory import PARTS, StageMemory
from kava.plan.mend import Mend
from kava.plan.overview import Overview, StagePlan
from kava.text import size

WIDTH = 100


def as_json(plan: Overview) -> dict[str, Any]:
    """JSON values; memory in GiB (2³⁰ bytes), disk in GB (10⁹)."""
    return {
        "vram_budget_gib": plan.budget_gib,
        "stages": {name.replace(" ", "_"): _stage(stage, plan.budget_gib) for name, stage in plan.stages.items()},
        "disk": {
            "store_gb": _gb(plan.disk.store),
            "store_is_there": plan.disk.store_is_there,
            "checkpoints_gb": _gb(plan.disk.checkpoints),
            "models_gb": _gb(plan.disk.models),
            "free_gb": _gb(plan.disk.free),
        },
        "tokens": {"examples": plan.tokens.examples, "count": plan.tokens.tokens, "known": plan.tokens.known},
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
        "too_large": stage.too_large if stage.largest else [],
        "lack": stage.memory.lack(budget_gib) if stage.too_large else None,
        "mends": [{"setting": m.setting, "peak_gib": _gib(m.peak), "fits": m.fits} for m in stage.mends],
    }


def as_text(plan: Overview) -> str:
    """Table of memory, what breaks the budget and what would mend it, and the disk."""
    lines = [_table(plan), "", *_notes(plan), ""]
    disk, tokens = plan.disk, plan.tokens
    estimate = "" if tokens.known else ", an estimate until they are tokenised"
    state = "sealed" if disk.store_is_there else "before entropy coding"
    lines += [
        f"tokens       {tokens.tokens:>9,}  in {tokens.examples:,} examples{estimate}",
        f"store        {size(disk.store):>9}  {state}",
        f"checkpoints  {size(disk.checkpoints):>9}  of one run, until it ends",
        f"models       {size(disk.models):>9}  students and projectors of all runs",
        f"to write     {size(disk.to_write):>9}  beside downloads, which `kava fetch` tells",
        f"free         {size(disk.free):>9}",
    ]
    lines += wrap(f"positions    {plan.prompts}", WIDTH, subsequent_indent="             ")
    if disk.to_write > disk.free:
        lines.append(f"The disk lacks {size(disk.to_write - disk.free)}; set cache_dir to another one, or make room.")
    return "\n".join(lines)


def _table(plan: Overview) -> str:
    stages = plan.stages.values()
    names = [name for name in PARTS if any(name in stage.memory.parts for stage in stages)]
    rows = [["GiB", *plan.stages], ["largest arm", *(stage.largest or "" for stage in stages)]]
    rows += [[name, *(_cell(stage.memory, name) for stage in stages)] for name in names]
    rows.append(["peak", *(f"{stage.memory.peak / GIB:.2f}" for stage in stages)])
    rows.append([f"fits {plan.budget_gib:g} GiB", *("no" if stage.too_large else "yes" for stage in stages)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in
                     zip(row[1:], widths[1:], strict=True))]).rstrip() for row in rows)  # fmt: skip


def _cell(memory: StageMemory, part: str) -> str:
    return f"{memory.parts[part] / GIB:.2f}" if memory.parts.get(part) else ""


def _notes(plan: Overview) -> list[str]:
    lines = []
    for name, stage in plan.stages.items():
        if len(set(stage.peaks.values())) > 1:
            peaks = ", ".join(f"{arm} {peak / GIB:.2f}" for arm, peak in stage.peaks.items())
            lines += wrap(f"{name}: {peaks} GiB", WIDTH, subsequent_indent="  ")
        if stage.memory.paged:
            lines.append(f"{name}: {stage.memory.paged / GIB:.2f} GiB of states are paged, and may leave the GPU")
    for name, stage in plan.stages.items():
        if stage.too_large:
            lines += wrap(_lack(name, stage, plan.budget_gib), WIDTH)
            lines.append("What would mend it, the least harmful first:")
            lines += [_mend(mend) for mend in stage.mends]
            if not stage.mends:
                lines.append("  nothing: take a smaller model or a larger GPU")
    return lines or [f"Every stage of every arm fits {plan.budget_gib:g} GiB."]


def _lack(name: str, stage: StagePlan, budget_gib: float) -> str:
    who = f"{name} of {stage.largest}" if stage.largest else name
    others = [arm for arm in stage.too_large if arm != stage.largest]
    also = f" (too large as well: {', '.join(others)})" if others and stage.largest else ""
    return f"{who} {stage.memory.lack(budget_gib)}{also}."


def _mend(mend: Mend) -> str:
    return f"  {mend.peak / GIB:5.2f} GiB  {'fits  ' if mend.fits else 'no fit'}  {mend.setting}"


def _gib(count: int) -> float:
    return round(count / GIB, 3)


def _gb(count: int) -> float:
    return round(count / 1e9, 3)

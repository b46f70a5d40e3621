"""What runs cost: time, memory and speed, a row per seed and one per arm."""

from collections.abc import Sequence
from dataclasses import dataclass

from kava.report.alignment import mean
from kava.report.clean import Row
from kava.report.finished import FinishedRun
from kava.report.reading import NO_COST
from kava.report.results import ArmRow, known


@dataclass(frozen=True)
class CostRow(Row):
    """Seconds and peak memory (MiB) of a run's stages, None for one it does not have; tokens/s of distillation."""

    pretrain_seconds: float | None
    pretrain_peak_memory_mib: float | None
    distill_seconds: float | None
    distill_peak_memory_mib: float | None
    evaluate_seconds: float | None
    evaluate_peak_memory_mib: float | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class MeanCost(Row):
    """One arm's cost: means over its seeds, but the highest memory."""

    pretrain_seconds: float | None = None
    distill_seconds: float | None = None
    evaluate_seconds: float | None = None
    tokens_per_second: float | None = None
    train_seconds: float | None = None
    train_tokens: float | None = None
    optimizer_steps: float | None = None
    peak_memory_mib: float | None = None


def cost_row(run: FinishedRun) -> CostRow:
    """What a run took."""
    distill, evaluate = run.distill.cost, run.evaluation.cost
    pretrain = run.pretrain.cost if run.pretrain else NO_COST
    tokens, seconds = run.distill.train_tokens, distill.seconds
    return CostRow(
        pretrain.seconds,
        pretrain.peak_memory_mib,
        distill.seconds,
        distill.peak_memory_mib,
        evaluate.seconds,
        evaluate.peak_memory_mib,
        None if tokens is None or not seconds else tokens / seconds,
    )


def mean_cost(costs: Sequence[CostRow], arm: ArmRow) -> MeanCost:
    """One arm's cost over its seeds; None throughout where a declared seed has no run."""
    if arm.missing_seeds:
        return MeanCost()
    rows = list(arm.seeds.values())
    return MeanCost(
        mean([cost.pretrain_seconds for cost in costs]),
        mean([cost.distill_seconds for cost in costs]),
        mean([cost.evaluate_seconds for cost in costs]),
        mean([cost.tokens_per_second for cost in costs]),
        mean([row.train_seconds for row in rows]),
        mean([row.train_tokens for row in rows]),
        mean([row.optimizer_steps for row in rows]),
        max(known(row.peak_memory_mib for row in rows), default=None),
    )

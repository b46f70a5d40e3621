"""Tables of arms and comparisons with planted numbers, and the verdict on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kava.report.results import ArmRow, Score, SeedRow
from kava.report.statistics.compare import Comparison
from kava.report.statistics.p_values import SeedLevel
from kava.report.verdict.verdict import Verdict
from kava.report.verdict.verdict import decide as decide_by_configs
from kava.tasks.metric import STRICT_MATCH, Metric

KINDS = {"A": "flat", "matched": "flat_matched", "B": "structured", "sft": None, "shuffled": "structured"}
KINDS |= {"logit_kd": None} | {f"x{i}": "linear" for i in range(9)}
RATES = {"A": 0.51, "matched": 0.47, "B": 0.58, "sft": 0.43, "shuffled": 0.42, "logit_kd": 0.44}


def arm_of(rates: Mapping[str, float], n: int, metric: Metric = STRICT_MATCH) -> ArmRow:
    """An arm of which nothing but its mean by seed is known."""
    mean = Score(sum(rates.values()) / len(rates), None)
    seeds = {seed: SeedRow({metric.name: Score(rate, None)}, n) for seed, rate in rates.items()}
    return ArmRow(None, None, None, {metric.name: mean}, None, None, [], seeds)


def arms(n: int = 500, seeds: int = 3, rate: float | None = None, names: str = "A B sft") -> dict[str, ArmRow]:
    def reached(name: str) -> float:
        return RATES.get(name, 0.5) if rate is None else rate

    return {name: arm_of({str(s): reached(name) for s in range(seeds)}, n) for name in names.split()}


def row(
    a: str,
    b: str,
    delta: float | None,
    p: float | None = 0.001,
    seeds: int = 3,
    anew: float | None = 0.01,
    metric: Metric = STRICT_MATCH,
) -> Comparison:
    """A comparison with Holm-adjusted `p` over questions, and Holm-adjusted p `anew` of the t-test over seeds."""
    if delta is None:
        return Comparison(a, b, metric)
    return Comparison(
        a,
        b,
        metric,
        delta,
        rates=(RATES.get(a, 0.5), RATES.get(b, 0.5)),
        ci95=(delta - 0.03, delta + 0.03),
        p_value=p,
        p_value_holm=p,
        seed_level=SeedLevel(delta, 0.01, anew, anew) if seeds > 1 else None,
        minimal_detectable_effect=0.042,
        seeds=tuple(str(s) for s in range(seeds)),
    )


def decide(
    table: Mapping[str, ArmRow],
    rows: Sequence[Comparison],
    controls: Sequence[str],
    mismatches: Sequence[str] = (),
    across: Sequence[tuple[str, str]] | None = None,
    metric: Metric = STRICT_MATCH,
) -> Verdict:
    configs = {name: {"aligner": kind and {"kind": kind}} for name, kind in KINDS.items()}
    return decide_by_configs(table, rows, controls, configs, metric, mismatches, across)


def many(n: int, names: str) -> dict[str, ArmRow]:
    """`n` linear KV arms beside the named ones."""
    return arms(seeds=5, names=" ".join([*(f"x{i}" for i in range(n)), *names.split()]))


BOTH_BEAT_SFT = [row("A", "sft", 0.1), row("B", "sft", 0.1)]
ALIKE = [row(f"x{i}", control, 0.0, 0.9) for i in range(6) for control in ("sft", "shuffled")]

"""Tables of arms and comparisons with planted numbers, and the verdict on them."""

from __future__ import annotations

from typing import Any

from kava.report.verdict import Verdict
from kava.report.verdict import decide as decide_by_configs

KINDS = {"A": "flat", "matched": "flat_matched", "B": "structured", "sft": None, "shuffled": "structured"}
KINDS |= {"logit_kd": None} | {f"x{i}": "linear" for i in range(9)}
RATES = {"A": 0.51, "matched": 0.47, "B": 0.58, "sft": 0.43, "shuffled": 0.42, "logit_kd": 0.44}


def arms(n: int = 500, seeds: int = 3, rate: float | None = None, names: str = "A B sft") -> dict[str, Any]:
    def arm(name: str) -> dict[str, Any]:
        reached = RATES.get(name, 0.5) if rate is None else rate
        rows = {str(s): {"strict_match": reached, "n": n} for s in range(seeds)}
        return {"aligner": KINDS[name], "strict_match_mean": reached, "seeds": rows}

    return {name: arm(name) for name in names.split()}


def row(
    a: str, b: str, delta: float | None, p: float | None = 0.001, seeds: int = 3, anew: float | None = 0.01
) -> dict[str, Any]:
    """A comparison with Holm-adjusted `p` over questions, and Holm-adjusted p `anew` of the t-test over seeds."""
    if delta is None:
        return {
            "a": a,
            "b": b,
            "delta": None,
            "complete": True,
            **dict.fromkeys(("rates", "ci95", "p_value", "p_value_holm", "seed_level", "minimal_detectable_effect")),
            "seeds": [],
            "identical": False,
            "same_as": None,
        }
    over = {"mean": delta, "se": 0.01, "p_value": anew, "p_value_holm": anew} if seeds > 1 else None
    edges = [delta - 0.03, delta + 0.03]
    named = [str(s) for s in range(seeds)]
    return {
        "a": a,
        "b": b,
        "delta": delta,
        "rates": [RATES.get(a, 0.5), RATES.get(b, 0.5)],
        "complete": True,
        "ci95": edges,
        "p_value": p,
        "p_value_holm": p,
        "seed_level": over,
        "minimal_detectable_effect": 0.042,
        "seeds": named,
        "identical": False,
        "same_as": None,
    }


def decide(
    table: dict[str, Any],
    rows: list[dict[str, Any]],
    controls: list[str],
    mismatches: tuple[str, ...] = (),
    across: list[tuple[str, str]] | None = None,
) -> Verdict:
    configs = {name: {"aligner": kind and {"kind": kind}} for name, kind in KINDS.items()}
    return decide_by_configs(table, rows, controls, configs, mismatches, across)


def many(n: int, names: str) -> dict[str, Any]:
    """`n` linear KV arms beside the named ones."""
    return arms(seeds=5, names=" ".join([*(f"x{i}" for i in range(n)), *names.split()]))


BOTH_BEAT_SFT = [row("A", "sft", 0.1), row("B", "sft", 0.1)]
ALIKE = [row(f"x{i}", control, 0.0, 0.9) for i in range(6) for control in ("sft", "shuffled")]

"""What the runs scored and cost: a row per seed, a row per arm, a row per reference model."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kava.grades import grade
from kava.report.alignment import ALIGNMENT, alignment_of, arm_alignment, has_collapsed, mean
from kava.report.inputs import ReferenceFiles
from kava.report.read import Evaluation, Run
from kava.report.statistics import wilson

METRIC = "strict_match"
FLEXIBLE = "flexible_extract"


def _known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _sum(values: Sequence[float | None]) -> float | None:
    """None as soon as one value is missing: what is not known is reported, never summed or averaged over."""
    known = _known(values)
    return sum(known) if len(known) == len(values) else None


def _interval(rate: float | None, n: int) -> list[float] | None:
    return None if rate is None or n < 1 else list(wilson(rate, n))


def _intervals(rates: Mapping[str, Any], n: int) -> dict[str, Any]:
    return {f"{metric}_ci95": _interval(rates[metric], n) for metric in (METRIC, FLEXIBLE)}


def _seed_row(run: Run) -> dict[str, Any]:
    manifest, scores = run.distill.manifest, run.evaluation.manifest
    alignment = alignment_of(run)
    stages = [run.distill.cost] + ([run.pretrain.cost] if run.pretrain else [])
    peaks = _known(cost.get("peak_memory_mib") for cost in [*stages, run.evaluation.cost])
    return {
        "strict_match": scores["strict_match"],
        "flexible_extract": scores["flexible_extract"],
        "n": scores["n"],
        **_intervals(scores, scores["n"]),
        **{name: alignment.get(name) for name in ALIGNMENT},
        "alignment_grade": grade(alignment.get("cos_sim_centered")),
        "collapsed": has_collapsed(alignment),
        "train_seconds": _sum([cost.get("seconds") for cost in stages]),
        "train_tokens": manifest.get("train_tokens"),
        "optimizer_steps": manifest.get("optimizer_steps"),
        "peak_memory_mib": max(peaks, default=None),
    }


def cost_row(run: Run) -> dict[str, Any]:
    """Seconds and peak memory (MiB) of each stage, None for one the arm does not have; tokens/s of distillation."""
    stages = {"pretrain": run.pretrain, "distill": run.distill, "evaluate": run.evaluation}
    tokens, seconds = run.distill.manifest.get("train_tokens"), run.distill.cost.get("seconds")
    row = {
        f"{stage}_{field}": None if part is None else part.cost.get(field)
        for stage, part in stages.items()
        for field in ("seconds", "peak_memory_mib")
    }
    return row | {"tokens_per_second": None if tokens is None or not seconds else tokens / seconds}


def mean_cost(costs: Sequence[Mapping[str, Any]], arm: Mapping[str, Any]) -> dict[str, Any]:
    """One arm's cost over its seeds, from its rows of `cost_row` and its row: means, but the highest memory.

    None throughout where a declared seed has no run.
    """
    rows = list(arm["seeds"].values())
    of_stages = ("pretrain_seconds", "distill_seconds", "evaluate_seconds", "tokens_per_second")
    means = {
        **{name: mean([cost[name] for cost in costs]) for name in of_stages},
        **{name: mean([row[name] for row in rows]) for name in ("train_seconds", "train_tokens", "optimizer_steps")},
        "peak_memory_mib": max(_known(row["peak_memory_mib"] for row in rows), default=None),
    }
    return dict.fromkeys(means) if arm["missing_seeds"] else means


def arm_row(config: Mapping[str, Any], runs: Mapping[str, Run], declared: Sequence[str]) -> dict[str, Any]:
    """One arm over its seeds (`runs`: seed → run); a mean is None where a seed's number is not known.

    So it is where one of its `declared` seeds has no run: if it failed, the others may be those that went well. These
    are `missing_seeds`.

    `strict_match_sd` is the standard deviation over seeds (n − 1; None for one seed), `strict_match_range` the
    smallest and the largest of them.
    """
    aligner = (config.get("aligner") or {}).get("kind")
    same_questions = len({frozenset(run.evaluation.samples) for run in runs.values()}) == 1
    rows = {seed: _seed_row(run) for seed, run in runs.items()}
    rates = {key: mean([row[key] for row in rows.values()]) for key in (METRIC, FLEXIBLE)}
    missing = [seed for seed in declared if seed not in runs]
    if not same_questions or missing:
        rates = dict.fromkeys(rates)
    n = min((row["n"] for row in rows.values()), default=0)
    rate = rates[METRIC]
    spread = [] if rate is None else [row[METRIC] for row in rows.values()]
    parameters = _known(run.distill.manifest.get("projector_parameters") for run in runs.values())
    return {
        "aligner": aligner,
        "loss": None if aligner is None else (config.get("loss") or {}).get("kind"),
        "projector_parameters": parameters[0] if parameters else None,
        "strict_match_mean": rate,
        **_intervals(rates, n),
        "strict_match_sd": statistics.stdev(spread) if len(spread) > 1 else None,
        "strict_match_range": [min(spread), max(spread)] if spread else None,
        "flexible_extract_mean": rates[FLEXIBLE],
        "alignment": arm_alignment(list(runs.values()), complete=not missing),
        "missing_seeds": missing,
        "seeds": rows,
    }


def reference_row(files: ReferenceFiles, evaluation: Evaluation) -> dict[str, Any]:
    """A model that was evaluated but not trained here, with the intervals of its accuracies."""
    row = {key: evaluation.manifest[key] for key in ("strict_match", "flexible_extract", "n")}
    return {"model": files.model, **row, **_intervals(row, row["n"])}

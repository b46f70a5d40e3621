"""What the runs scored and cost: a row per seed, a row per arm, a row per reference model."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kava.report.alignment import arm_alignment, mean
from kava.report.clean import Row
from kava.report.finished import Alignment, Cost, Evaluation, FinishedRun
from kava.report.inputs import ReferenceFiles
from kava.report.statistics.intervals import Interval, interval_of
from kava.tasks.metric import Metric

Known = TypeVar("Known")
UNKNOWN = Alignment()


@dataclass(frozen=True)
class Score:
    """A model's mean by one metric, and its 95% interval over questions; None where it is not known."""

    mean: float | None
    ci95: Interval | None


class Scored(Row):
    """A row whose `scores` are metric → score, the primary metric first."""

    scores: Mapping[str, Score]

    @property
    def primary(self) -> Score:
        """By the primary metric."""
        return next(iter(self.scores.values()))

    def intervals(self) -> dict[str, Interval | None]:
        """As they stand in the JSON."""
        return {f"{name}_ci95": score.ci95 for name, score in self.scores.items()}


@dataclass(frozen=True)
class SeedRow(Scored):
    """One run; `n` is its number of questions, and its alignment is empty without an aligner."""

    scores: Mapping[str, Score]
    n: int
    alignment: Alignment = UNKNOWN
    train_seconds: float | None = None
    train_tokens: int | None = None
    optimizer_steps: int | None = None
    peak_memory_mib: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {
            **{name: score.mean for name, score in self.scores.items()},
            "n": self.n,
            **self.intervals(),
            **self.alignment.means,
            "alignment_grade": self.alignment.grade,
            "collapsed": self.alignment.collapsed,
            "train_seconds": self.train_seconds,
            "train_tokens": self.train_tokens,
            "optimizer_steps": self.optimizer_steps,
            "peak_memory_mib": self.peak_memory_mib,
        }


@dataclass(frozen=True)
class ArmRow(Scored):
    """One arm over its seeds.

    Attributes
    ----------
    scores
        Metric → mean over seeds. Not known as long as one of the declared seeds has no run, since the others may be
        those that went well, or where the runs answered different questions.
    sd, range
        Of the primary metric over seeds: standard deviation (n − 1; None for one seed), lowest and highest.
    missing_seeds
        Declared seeds without a run.
    """

    aligner: str | None
    loss: str | None
    projector_parameters: int | None
    scores: Mapping[str, Score]
    sd: float | None
    range: tuple[float, float] | None
    alignment: Alignment | None
    missing_seeds: Sequence[str]
    seeds: Mapping[str, SeedRow]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        (primary, score), *others = self.scores.items()
        return {
            "aligner": self.aligner,
            "loss": self.loss,
            "projector_parameters": self.projector_parameters,
            f"{primary}_mean": score.mean,
            **self.intervals(),
            f"{primary}_sd": self.sd,
            f"{primary}_range": self.range,
            **{f"{name}_mean": other.mean for name, other in others},
            "alignment": self.alignment,
            "missing_seeds": self.missing_seeds,
            "seeds": self.seeds,
        }


@dataclass(frozen=True)
class ReferenceRow(Scored):
    """A model that was evaluated but not trained here."""

    model: str
    scores: Mapping[str, Score]
    n: int

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        means = {name: score.mean for name, score in self.scores.items()}
        return {"model": self.model, **means, "n": self.n, **self.intervals()}


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


def _known(values: Iterable[Known | None]) -> list[Known]:
    return [value for value in values if value is not None]


def evaluation_scores(evaluation: Evaluation, metrics: Sequence[Metric]) -> dict[str, Score]:
    """Metric → what the manifest records, with its interval."""
    means = {metric: evaluation.means[metric.name] for metric in metrics}
    return {
        metric.name: Score(value, interval_of(metric, value, evaluation.n, list(evaluation.scores(metric).values())))
        for metric, value in means.items()
    }


def _seed_row(run: FinishedRun, metrics: Sequence[Metric]) -> SeedRow:
    stages = [run.distill] + ([run.pretrain] if run.pretrain else [])
    seconds = [stage.cost.seconds for stage in stages]
    peaks = _known(cost.peak_memory_mib for cost in (*(stage.cost for stage in stages), run.evaluation.cost))
    return SeedRow(
        evaluation_scores(run.evaluation, metrics),
        run.evaluation.n,
        run.distill.alignment or UNKNOWN,
        # What is not known is reported, never summed over.
        sum(_known(seconds)) if None not in seconds else None,
        run.distill.train_tokens,
        run.distill.optimizer_steps,
        max(peaks, default=None),
    )


def arm_row(
    config: Mapping[str, Any], runs: Mapping[str, FinishedRun], declared: Sequence[str], metrics: Sequence[Metric]
) -> ArmRow:
    """One arm over its seeds (`runs`: seed → run); a mean is None where a seed's number is not known."""
    aligner = (config.get("aligner") or {}).get("kind")
    rows = {seed: _seed_row(run, metrics) for seed, run in runs.items()}
    missing = [seed for seed in declared if seed not in runs]
    same_questions = len({frozenset(run.evaluation.answers) for run in runs.values()}) == 1
    n = min((row.n for row in rows.values()), default=0)
    scores = {}
    for metric in metrics:
        rate = mean([row.scores[metric.name].mean for row in rows.values()])
        if missing or not same_questions:
            rate = None
        values = [run.evaluation.scores(metric) for run in runs.values()] if rate is not None else []
        per_question = [float(statistics.mean(of[doc] for of in values)) for doc in (values[0] if values else ())]
        scores[metric.name] = Score(rate, interval_of(metric, rate, n, per_question))
    known = scores[metrics[0].name].mean is not None
    spread = _known(row.primary.mean for row in rows.values()) if known else []
    return ArmRow(
        aligner,
        None if aligner is None else (config.get("loss") or {}).get("kind"),
        next(iter(_known(run.distill.projector_parameters for run in runs.values())), None),
        scores,
        statistics.stdev(spread) if len(spread) > 1 else None,
        (min(spread), max(spread)) if spread else None,
        arm_alignment(list(runs.values()), complete=not missing),
        missing,
        rows,
    )


def reference_row(files: ReferenceFiles, evaluation: Evaluation, metrics: Sequence[Metric]) -> ReferenceRow:
    """A model that was evaluated but not trained here, with the intervals of its means."""
    return ReferenceRow(files.model, evaluation_scores(evaluation, metrics), evaluation.n)


def cost_row(run: FinishedRun) -> CostRow:
    """What a run took."""
    distill, evaluate = run.distill.cost, run.evaluation.cost
    pretrain = run.pretrain.cost if run.pretrain else Cost()
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
        max(_known(row.peak_memory_mib for row in rows), default=None),
    )

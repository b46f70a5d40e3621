"""What the runs scored and cost: a row per seed, a row per arm, a row per reference model."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kava.report.alignment import arm_alignment, mean
from kava.report.clean import Row
from kava.report.evaluated import AtStep, Evaluation
from kava.report.finished import Alignment, FinishedRun
from kava.report.inputs import ReferenceFiles
from kava.report.statistics.intervals import Interval, interval_of, t_interval
from kava.tasks.metric import Metric

Known = TypeVar("Known")
UNKNOWN = Alignment()


@dataclass(frozen=True)
class Score:
    """A model's mean by one metric, its 95% interval over questions and, of an arm, its standard deviation over seeds.

    None where it is not known; the standard deviation (n − 1) also for one seed.
    """

    mean: float | None
    ci95: Interval | None
    sd: float | None = None


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
    """One run; `n` is its number of questions, and its alignment is empty without an aligner.

    `at_steps` is step → scores on the validation questions.
    """

    scores: Mapping[str, Score]
    n: int
    alignment: Alignment = UNKNOWN
    train_seconds: float | None = None
    train_tokens: int | None = None
    optimizer_steps: int | None = None
    peak_memory_mib: float | None = None
    at_steps: Mapping[int, AtStep] = field(default_factory=dict)

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
            "at_steps": self.at_steps,
        }


@dataclass(frozen=True)
class ArmAtStep(Row):
    """An arm at a step: metric → mean over seeds and standard deviation; mean seconds of training until then."""

    scores: Mapping[str, Score]
    n: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        means = {name: score.mean for name, score in self.scores.items()}
        spread = {f"{name}_sd": score.sd for name, score in self.scores.items()}
        return {**means, **spread, "n": self.n, "seconds": self.seconds}


@dataclass(frozen=True)
class ArmRow(Scored):
    """One arm over its seeds.

    Attributes
    ----------
    scores
        Metric → mean over seeds. Not known as long as one of the declared seeds has no run, since the others may be
        those that went well, or where the runs answered different questions.
    range
        Of the primary metric over seeds: lowest and highest.
    missing_seeds
        Declared seeds without a run.
    at_steps
        Of the steps that every declared seed was scored at.
    """

    aligner: str | None
    loss: str | None
    projector_parameters: int | None
    scores: Mapping[str, Score]
    range: tuple[float, float] | None
    alignment: Alignment | None
    missing_seeds: Sequence[str]
    seeds: Mapping[str, SeedRow]
    at_steps: Mapping[int, ArmAtStep] = field(default_factory=dict)

    @property
    def sd(self) -> float | None:
        """Of the primary metric."""
        return self.primary.sd

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
            **{f"{name}_sd": other.sd for name, other in others},
            "at_steps": self.at_steps,
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
    at_steps: Mapping[int, AtStep] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        means = {name: score.mean for name, score in self.scores.items()}
        return {"model": self.model, **means, "n": self.n, **self.intervals(), "at_steps": self.at_steps}


def known(values: Iterable[Known | None]) -> list[Known]:
    return [value for value in values if value is not None]


def evaluation_scores(evaluation: Evaluation, metrics: Sequence[Metric]) -> dict[str, Score]:
    """Metric → what the manifest records, with its interval."""
    means = {metric: evaluation.means[metric.name] for metric in metrics}
    return {
        metric.name: Score(
            value,
            _interval(metric, metrics[0], value, evaluation.n, list(evaluation.scores(metric).values())),
        )
        for metric, value in means.items()
    }


def _interval(metric: Metric, primary: Metric, mean: float | None, n: int, values: Sequence[float]) -> Interval | None:
    """As comparisons need it of the primary metric and of marks; a bootstrap of every further number takes minutes."""
    if metric is primary or metric.proportion:
        return interval_of(metric, mean, n, values)
    return None if mean is None else t_interval(values)


def _seed_row(run: FinishedRun, metrics: Sequence[Metric]) -> SeedRow:
    stages = [run.distill] + ([run.pretrain] if run.pretrain else [])
    seconds = [stage.cost.seconds for stage in stages]
    peaks = known(cost.peak_memory_mib for cost in (*(stage.cost for stage in stages), run.evaluation.cost))
    return SeedRow(
        evaluation_scores(run.evaluation, metrics),
        run.evaluation.n,
        run.distill.alignment or UNKNOWN,
        # What is not known is reported, never summed over.
        sum(known(seconds)) if None not in seconds else None,
        run.distill.train_tokens,
        run.distill.optimizer_steps,
        max(peaks, default=None),
        run.evaluation.at_steps,
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
        shared = [doc for doc in (values[0] if values else ()) if all(doc in of for of in values)]
        per_question = [float(statistics.mean(of[doc] for of in values)) for doc in shared]
        scores[metric.name] = Score(
            rate,
            _interval(metric, metrics[0], rate, n, per_question),
            None if rate is None else _sd([row.scores[metric.name].mean for row in rows.values()]),
        )
    measured = scores[metrics[0].name].mean is not None
    reached = known(row.primary.mean for row in rows.values()) if measured else []
    return ArmRow(
        aligner,
        None if aligner is None else (config.get("loss") or {}).get("kind"),
        next(iter(known(run.distill.projector_parameters for run in runs.values())), None),
        scores,
        (min(reached), max(reached)) if reached else None,
        arm_alignment(list(runs.values()), complete=not missing),
        missing,
        rows,
        {} if missing else _arm_at_steps(list(rows.values()), metrics),
    )


def _sd(values: Sequence[float | None]) -> float | None:
    spread = known(values)
    return statistics.stdev(spread) if len(spread) > 1 else None


def _arm_at_steps(rows: Sequence[SeedRow], metrics: Sequence[Metric]) -> dict[int, ArmAtStep]:
    steps = [step for step in rows[0].at_steps if all(step in row.at_steps for row in rows)] if rows else []
    found = {}
    for step in steps:
        at = [row.at_steps[step] for row in rows]
        scores = {}
        for name in (metric.name for metric in metrics):
            values = [each.means[name] for each in at]
            value = mean(values)
            scores[name] = Score(value, None, None if value is None else _sd(values))
        found[step] = ArmAtStep(scores, min(each.n for each in at), statistics.fmean(each.seconds for each in at))
    return found


def reference_row(files: ReferenceFiles, evaluation: Evaluation, metrics: Sequence[Metric]) -> ReferenceRow:
    """A model that was evaluated but not trained here, with the intervals of its means."""
    scores = evaluation_scores(evaluation, metrics)
    return ReferenceRow(files.model, scores, evaluation.n, evaluation.at_steps)

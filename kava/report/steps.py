"""Scores at steps of training as curves, and how many steps an arm with KV saves against one without."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kava.report.clean import Row
from kava.report.evaluated import AtStep
from kava.report.statistics.reach import Curve, Reached, reached_by
from kava.tasks.metric import ANSWER_NLL, Metric

# Arm → seed → step → scores of its weights then.
AtSteps = Mapping[str, Mapping[str, Mapping[int, AtStep]]]


@dataclass(frozen=True)
class StepsSaved(Row):
    """`at` is step of the control → when the arm has what the control had there, by `metric`."""

    arm: str
    control: str
    metric: Metric
    at: Mapping[int, Reached]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {**vars(self), "metric": self.metric.name}


def shown_metrics(metrics: Sequence[Metric]) -> list[Metric]:
    """Those that are followed over steps: the primary one and the likelihood of the gold answers."""
    return [metric for metric in metrics if metric in (metrics[0], ANSWER_NLL)]


def seed_curves(at_steps: AtSteps, start: AtStep | None, metric: Metric) -> dict[str, dict[str, dict[int, float]]]:
    """Arm → seed → step → mean by `metric`; `start` is step 0 of them all, the base student, where it is known.

    Without a step of training that has a mean there is no curve.
    """

    def curve(trained: Mapping[int, AtStep]) -> dict[int, float]:
        known = {step: value for step, each in trained.items() if (value := each.means[metric.name]) is not None}
        first = None if start is None else start.means[metric.name]
        return known if first is None or not known else {0: first} | known

    return {arm: {seed: curve(each) for seed, each in seeds.items()} for arm, seeds in at_steps.items()}


def steps_saved(
    at_steps: AtSteps,
    declared: Mapping[str, Sequence[str]],
    pairs: Sequence[tuple[str, str]],
    controls: Sequence[str],
    configs: Mapping[str, Mapping[str, Any]],
    start: AtStep | None,
    metrics: Sequence[Metric],
) -> list[StepsSaved]:
    """Of each declared pair of an arm with KV and a control without an aligner, by each metric that is followed.

    Pairs of which a declared seed has no run, or no scores at steps, are left out.

    Parameters
    ----------
    at_steps, declared, configs
        By arm: what was scored, the declared seeds, the configuration.
    pairs, controls
        Declared pairs, and the arms that are controls.
    start
        Scores of the base student, at step 0 of every arm; None where that is not known.
    metrics
        The primary one first.
    """
    plain = [name for name in controls if configs[name].get("aligner") is None]
    named = [(a, b) if b in plain else (b, a) for a, b in pairs]
    found = []
    for metric in shown_metrics(metrics):
        curves = seed_curves(at_steps, start, metric)
        for arm, control in named:
            if arm in controls or control not in plain:
                continue
            seeds = [seed for seed in declared[arm] if seed in declared[control]]
            of_arm, of_control = (_complete(curves[name], seeds) for name in (arm, control))
            if of_arm and of_control and (at := reached_by(of_arm, of_control, metric.sign)):
                found.append(StepsSaved(arm, control, metric, at))
    return found


def _complete(curves: Mapping[str, Curve], seeds: Sequence[str]) -> dict[str, Curve]:
    """The curves of these seeds; none if one of them has none."""
    known = {seed: curves[seed] for seed in seeds if curves.get(seed)}
    return known if len(known) == len(seeds) else {}

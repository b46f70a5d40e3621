"""After how many steps a model has what another had, from scores at a few steps of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kava.report.clean import Row
from kava.report.statistics.compare import ENOUGH_SEEDS
from kava.report.statistics.intervals import Interval, t_interval

# Step → score.
Curve = Mapping[int, float]


@dataclass(frozen=True)
class Reached(Row):
    """When an arm has what another had at a step.

    Attributes
    ----------
    steps : float or None
        Mean over seeds; None where a seed never gets there.
    ratio : float or None
        `steps` as a share of the other's: under 1 is sooner.
    ci95 : (float, float) or None
        t interval of `steps` over seeds, cut at 0; None with fewer than 3 seeds.
    within : int
        The last step that was scored in every seed, up to which the arm was followed.
    seeds : dict
        Seed → steps; None where it never gets there.
    """

    steps: float | None
    ratio: float | None
    ci95: Interval | None
    within: int
    seeds: Mapping[str, float | None]


def steps_to_reach(curve: Curve, target: float, sign: int) -> float | None:
    """The first step at which a curve is as good as `target`; None where it is not within its steps.

    The curve is followed through its best score so far, which is monotone, by straight lines between the steps. Where
    its first step is that good already, that step is returned: without a score before it, no earlier one is known.

    Parameters
    ----------
    curve
        Step → score, at least one.
    target
        Score to reach.
    sign
        1 where higher is better, −1 where lower is.
    """
    steps = sorted(curve)
    before, best = steps[0], sign * curve[steps[0]]
    wanted = sign * target
    if best >= wanted:
        return float(before)
    for step in steps[1:]:
        better = max(best, sign * curve[step])
        if better >= wanted:
            return before + (step - before) * (wanted - best) / (better - best)
        before, best = step, better
    return None


def improving_steps(curves: Sequence[Curve], sign: int) -> list[int]:
    """Steps after 0 at which the mean over curves is better than at every earlier one.

    What a model had at any other step it had before, so that nothing is said about that many steps.
    """
    shared = sorted(step for step in curves[0] if all(step in curve for curve in curves))
    best, found = float("-inf"), []
    for step in shared:
        mean = sign * sum(curve[step] for curve in curves) / len(curves)
        if mean > best:
            best = mean
            found.append(step)
    return [step for step in found if step > 0]


def reached_by(arm: Mapping[str, Curve], other: Mapping[str, Curve], sign: int) -> dict[int, Reached]:
    """Step of `other` → when `arm` has what it had there, seed by seed.

    Parameters
    ----------
    arm, other
        Seed → curve; the same seeds, at least one.
    sign
        1 where higher is better, −1 where lower is.
    """
    assert arm.keys() == other.keys(), f"curves of other seeds: {', '.join(arm)} against {', '.join(other)}"
    within = min(max(curve) for curve in arm.values())
    found = {}
    for step in improving_steps(list(other.values()), sign):
        seeds = {seed: steps_to_reach(curve, other[seed][step], sign) for seed, curve in arm.items()}
        known = [steps for steps in seeds.values() if steps is not None]
        mean = sum(known) / len(known) if len(known) == len(seeds) else None
        edges = t_interval(known) if mean is not None and len(known) >= ENOUGH_SEEDS else None
        found[step] = Reached(
            mean,
            None if mean is None else mean / step,
            None if edges is None else (max(0.0, edges[0]), edges[1]),
            within,
            seeds,
        )
    return found

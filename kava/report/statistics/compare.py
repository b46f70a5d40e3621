"""One arm against another, question by question, and what such a comparison can show.

*Shown*: the trained students differ on the questions (Holm-adjusted p under 0.05). *Repeated*: shown, and the paired
t-test over at least three seeds says that students trained anew would differ too (p after Holm's correction of its
own), and none of the declared seeds is missing. Without that correction, three comparisons of equal arms whose
accuracy has a standard deviation of 6 points over seeds, as the demo's have, give a claim in 12% of experiments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from statsmodels.stats.proportion import proportion_effectsize

from kava.report.clean import Row
from kava.report.format import Scale
from kava.report.statistics.intervals import ALPHA, Interval, bootstrap_ci
from kava.report.statistics.p_values import PERMUTATION_FLOOR, SeedLevel, mcnemar_p, seed_level, sign_flip_p
from kava.tasks.metric import Metric

# seed → doc_id → number of the answer
Scores = Mapping[str, Mapping[str, float]]

TEST = "sign-flip permutation"
ENOUGH_SEEDS = 3
SEED_MISSING = "a declared seed is missing"


@dataclass(frozen=True)
class Comparison(Row):
    """Arm a against arm b on the same questions; without numbers where it could not be made.

    Attributes
    ----------
    delta : float or None
        Mean of a minus that of b, over common seeds and all questions.
    rates : (float, float) or None
        Means of a and of b, over the same.
    ci95 : (float, float) or None
        Paired bootstrap interval of `delta` over questions.
    effect_size : float or None
        Cohen's h of the two accuracies; of a metric that is no share, None.
    difference_sd : float or None
        Standard deviation (n − 1) of the questions' differences, each averaged over seeds; 0 for one question.
    p_value, p_value_holm : float or None
        Two-sided sign-flip permutation test over questions, which treats the trained students as fixed.
    seed_level : SeedLevel or None
        The same difference with seeds as observations; None with fewer than two common seeds.
    mcnemar, discordant : dict
        Of marks, seed → p of the exact McNemar test; seed → (questions only a answered right, only b).
    n : int or None
        Number of questions.
    seeds : tuple of str
        The seeds both arms have.
    complete : bool
        Whether these are all seeds that both arms declare.
    identical : bool
        Whether both arms are the same runs: the difference is 0 by construction, and nothing is tested.
    same_as : (str, str) or None
        Arms of an earlier comparison of the same runs: one test and not two.
    """

    a: str
    b: str
    metric: Metric
    delta: float | None = None
    rates: tuple[float, float] | None = None
    ci95: Interval | None = None
    effect_size: float | None = None
    difference_sd: float | None = None
    p_value: float | None = None
    seed_level: SeedLevel | None = None
    mcnemar: Mapping[str, float] = field(default_factory=dict)
    discordant: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    n: int | None = None
    seeds: tuple[str, ...] = ()
    identical: bool = False
    same_as: tuple[str, str] | None = None
    p_value_holm: float | None = None
    minimal_detectable_effect: float | None = None
    complete: bool = True

    @property
    def scale(self) -> Scale:
        """How its numbers are written."""
        return Scale(self.metric)

    @property
    def tested(self) -> bool:
        """Whether a difference could be made, and not of runs that are the same."""
        return self.delta is not None and not self.identical

    def advantage(self, name: str) -> float:
        """How much better the arm `name` is than the other, in the metric's unit; 0 where that is not known."""
        return (self.delta or 0.0) * self.metric.sign * (1 if name == self.a else -1)

    @property
    def ordered(self) -> tuple[str, str]:
        """The better arm and the other one."""
        return (self.a, self.b) if self.advantage(self.a) > 0 else (self.b, self.a)

    @property
    def shown(self) -> bool:
        """Whether these students are shown to differ."""
        return self.p_value_holm is not None and self.p_value_holm < ALPHA and self.delta != 0

    @property
    def winner(self) -> str | None:
        """The arm whose trained students are shown to be better."""
        return self.ordered[0] if self.shown else None

    @property
    def few_seeds(self) -> bool:
        """Whether there are fewer seeds than a test over them needs."""
        return len(self.seeds) < ENOUGH_SEEDS

    @property
    def repeated(self) -> bool:
        """Whether a shown difference is also shown for students trained anew.

        That is, in the t-test over at least 3 seeds, all those that both arms declare, with a Holm-adjusted p of at
        most 0.05. Where a run of a seed failed, the others may be those that went well.
        """
        if not self.shown or self.seed_level is None or self.few_seeds or not self.complete:
            return False
        p_value = self.seed_level.p_value_holm
        # Without a p, every seed has the same difference, and it is not zero where one is shown: t is infinite.
        return p_value is None or p_value <= ALPHA

    @property
    def unrepeated(self) -> bool:
        """Whether a difference is shown of these students alone."""
        return self.shown and not self.repeated

    @property
    def at_floor(self) -> bool:
        """Whether no sign pattern drawn was as extreme, so that p is an upper bound."""
        return self.p_value is not None and self.p_value <= PERMUTATION_FLOOR * (1 + 1e-9)

    @property
    def caveat(self) -> str | None:
        """What limits a difference that is shown of these students alone, or lacks a seed; None for any other."""
        if not self.unrepeated:
            return None if self.complete or not self.tested else SEED_MISSING
        if not self.complete:
            return f"differs in these students; {SEED_MISSING}"
        if not self.few_seeds:
            return "differs in these students; not shown to repeat over seeds"
        return f"differs in these students; {seeds_in_words(len(self.seeds))} cannot show that it repeats"

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        named = {"a": self.a, "b": self.b, "metric": self.metric.name, "test": TEST}
        return named | vars(self) | {"metric": self.metric.name, "caveat": self.caveat}


def seeds_in_words(number: int) -> str:
    """As in a sentence: one seed, 3 seeds."""
    return "one seed" if number == 1 else f"{number} seeds"


def cohens_h(rate_a: float, rate_b: float) -> float:
    """Effect size of two accuracies: Cohen's h, 2·asin(√a) − 2·asin(√b), with the sign of a − b.

    By Cohen's convention 0.2 is small, 0.5 medium and 0.8 large. A difference of a few points is a larger effect
    near 0 or 1, where there is less room, than near one half.

    Parameters
    ----------
    rate_a, rate_b : float
        Shares of right answers, 0 to 1; for an arm, the mean over its seeds.

    References
    ----------
    Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, chapter 6.
    """
    return float(proportion_effectsize(rate_a, rate_b))


def compare(a: str, b: str, scores_a: Scores, scores_b: Scores, metric: Metric) -> Comparison:
    """Compare two arms question by question, over the seeds that both have; without corrections.

    Parameters
    ----------
    a, b : str
        Names of the arms.
    scores_a, scores_b : mapping
        seed → doc_id → number of the answer by `metric`.

    Raises
    ------
    ValueError
        If the arms share no seed, or if any of their runs answered other questions than the rest.
    """
    seeds = tuple(seed for seed in scores_a if seed in scores_b)
    if not seeds:
        raise ValueError(
            f"arms {a!r} and {b!r} share no seed ({', '.join(scores_a) or 'none'} against "
            f"{', '.join(scores_b) or 'none'}), so they cannot be compared"
        )
    questions = sorted(scores_a[seeds[0]])
    expected = set(questions)
    for seed in seeds:
        for name, scores in ((a, scores_a), (b, scores_b)):
            odd = expected ^ set(scores[seed])
            if odd or not questions:
                raise ValueError(
                    f"arms {a!r} and {b!r} cannot be compared: {name!r}, seed {seed}, answered "
                    f"{len(scores[seed])} questions, {a!r}, seed {seeds[0]}, answered {len(questions)}, "
                    f"and {len(odd)} of them are in one set only"
                )
    of_a, of_b = (
        # Whole numbers are summed exactly.
        np.array([[scores[seed][q] for q in questions] for seed in seeds], np.int64 if metric.proportion else None)
        for scores in (scores_a, scores_b)
    )
    summed = (of_a - of_b).sum(axis=0)
    rates = float(of_a.mean()), float(of_b.mean())
    discordant = {seed: (int((x > y).sum()), int((x < y).sum())) for seed, x, y in zip(seeds, of_a, of_b, strict=True)}
    low, high = bootstrap_ci(summed)
    return Comparison(
        a,
        b,
        metric,
        delta=float(summed.mean() / len(seeds)),
        rates=rates,
        ci95=(low / len(seeds), high / len(seeds)),
        effect_size=cohens_h(*rates) if metric.proportion else None,
        difference_sd=float(summed.std(ddof=1)) / len(seeds) if len(questions) > 1 else 0.0,
        p_value=sign_flip_p(summed),
        seed_level=seed_level((of_a - of_b).sum(axis=1).tolist(), len(questions)),
        mcnemar={seed: mcnemar_p(*counts) for seed, counts in discordant.items()} if metric.proportion else {},
        discordant=discordant if metric.proportion else {},
        n=len(questions),
        seeds=seeds,
    )

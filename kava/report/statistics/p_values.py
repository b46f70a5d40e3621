"""Tests of differences and their corrections, and how large a difference has to be to be seen.

Two tests of one difference ask two things. The permutation test over questions takes the trained students as they
are: would *these* students differ on other questions? The paired t-test over seeds takes the questions as they are:
would the arms differ if they were *trained again*? A difference worth having passes both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, permutation_test, sem, ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from kava.report.clean import Row
from kava.report.statistics.intervals import ALPHA, BATCH, RESAMPLES, RNG_SEED

# The share of such differences that the test would show, by convention.
POWER = 0.8
# A two-sided permutation test that draws its sign patterns can give no smaller p.
PERMUTATION_FLOOR = 2 / (RESAMPLES + 1)


@dataclass(frozen=True)
class SeedLevel(Row):
    """The difference between two arms, with the seed as the unit of observation.

    Attributes
    ----------
    mean : float
        Mean over seeds of a's mean minus b's.
    se : float
        Standard error of that mean, over seeds.
    p_value : float or None
        Two-sided paired t-test; None where every seed has the same difference, of which t has no value.
    p_value_holm : float or None
        After Holm's correction over all comparisons of the report.
    """

    mean: float
    se: float
    p_value: float | None
    p_value_holm: float | None = None


def seed_level(sums: Sequence[float], n: int) -> SeedLevel | None:
    """Paired t-test over seeds; None with fewer than two.

    Parameters
    ----------
    sums
        One per seed: sum over questions of a's numbers minus b's, which for marks is whole.
    n
        Number of questions of a run.
    """
    if len(sums) < 2:
        return None
    mean = float(np.mean(sums)) / n
    # SciPy would divide by the zero spread.
    if len(set(sums)) == 1:
        return SeedLevel(mean, 0.0, 1.0 if sums[0] == 0 else None)
    return SeedLevel(mean, float(sem(sums)) / n, float(ttest_1samp(sums, 0).pvalue))


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p-value of a mean difference, by flipping the signs of the questions' differences.

    Under the null the two arms are exchangeable within a question, so each difference is as likely with
    the other sign. All sign patterns are enumerated where there are no more than `RESAMPLES`; else that many
    are drawn, and SciPy counts the observed one with them ((k + 1) / (n + 1)), so p is never 0.

    Parameters
    ----------
    differences : np.ndarray
        `[questions]`, a − b. Integers (marks, summed over seeds) keep ties exact.

    References
    ----------
    Phipson and Smyth, "Permutation p-values should never be zero", 2010.
    """
    # A zero keeps its value under a flip, so it changes no p-value and only costs time.
    moving = differences[differences != 0].astype(np.float64)
    if moving.size < 2:  # SciPy asks for two; with one difference both sign patterns are as extreme
        return 1.0
    result = permutation_test(
        (moving,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=BATCH,
        rng=np.random.default_rng(RNG_SEED),
    )
    return float(result.pvalue)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Exact McNemar p-value from the two discordant counts; the concordant ones do not enter."""
    return float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given."""
    if not p_values:
        return []
    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def minimal_detectable_effect(sd: float, n: int, comparisons: int, largest: float = 1.0) -> float | None:
    """Difference of means that the test over questions shows with 80% power, two-sided.

    The level is 5% divided by the number of comparisons, which is the first and hardest step of Holm's correction.
    Closed form for a nearly normal mean of n differences d. Flipping signs leaves Σd² as it is, so the test rejects
    where |mean| > z·√(Σd²)/n, that is |mean| > z·sd/√(n − z²); z of the power times sd/√n is added to that. The
    paired t-test's is within 1% of it from 200 questions on. (statsmodels' solver for that passes through effects where
    SciPy's noncentral t distribution is NaN, and then may return what is no solution.)

    Parameters
    ----------
    sd : float
        Standard deviation (n − 1) of the questions' differences, each averaged over seeds.
    n : int
        Number of questions.
    comparisons : int
        Number of comparisons that Holm's correction is over.
    largest : float
        The largest difference that there can be: 1 of two shares.

    Returns
    -------
    float or None
        None where no question differs, or so few were asked that even the largest difference would not be detected.
    """
    assert comparisons >= 1, f"a comparison is one of at least 1, not of {comparisons}"
    z = float(norm.isf(ALPHA / comparisons / 2))
    if n <= z**2 or sd == 0:
        return None
    effect = sd * (z / math.sqrt(n - z**2) + float(norm.ppf(POWER)) / math.sqrt(n))
    return effect if effect <= largest else None

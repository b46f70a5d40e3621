"""How large a difference is, and how large it would have to be to be seen with so many questions."""

from __future__ import annotations

import math

# The level of every test and interval of the report: 5%.
ALPHA = 0.05
# The share of such differences that the test would show, by convention.
POWER = 0.8


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
    from statsmodels.stats.proportion import proportion_effectsize

    return float(proportion_effectsize(rate_a, rate_b))


def minimal_detectable_effect(sd: float, n: int, comparisons: int) -> float | None:
    """Difference of accuracies that the test over questions shows with 80% power, two-sided.

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

    Returns
    -------
    float or None
        Between 0 and 1; None where no question differs, or so few were asked that even a difference of 1 would not
        be detected.
    """
    from scipy.stats import norm

    assert comparisons >= 1, f"a comparison is one of at least 1, not of {comparisons}"
    z = float(norm.isf(ALPHA / comparisons / 2))
    if n <= z**2 or sd == 0:
        return None
    effect = sd * (z / math.sqrt(n - z**2) + float(norm.ppf(POWER)) / math.sqrt(n))
    return effect if effect <= 1 else None

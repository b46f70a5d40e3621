"""The difference between two arms with the seed as the unit of observation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SeedLevel:
    """The difference between two arms, with the seed as the unit of observation.

    Attributes
    ----------
    mean : float
        Mean over seeds of a's accuracy minus b's.
    se : float
        Standard error of that mean, over seeds.
    p_value : float or None
        Two-sided paired t-test; None where every seed has the same difference, of which t has no value.
    """

    mean: float
    se: float
    p_value: float | None


def seed_level(counts: Sequence[int], n: int) -> SeedLevel | None:
    """Paired t-test over seeds.

    Parameters
    ----------
    counts
        One per seed: right answers of a minus right answers of b.
    n
        Number of questions of a run.
    """
    from scipy.stats import sem, ttest_1samp

    if len(counts) < 2:
        return None
    mean = float(np.mean(counts)) / n
    # Counts are whole, so equality is exact; SciPy would divide by the zero spread.
    if len(set(counts)) == 1:
        return SeedLevel(mean, 0.0, 1.0 if counts[0] == 0 else None)
    return SeedLevel(mean, float(sem(counts)) / n, float(ttest_1samp(counts, 0).pvalue))

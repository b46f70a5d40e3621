"""What the report's intervals and verdicts promise, held against simulated experiments of which the truth is known.

A student answers a question with probability logistic(ability − difficulty). Difficulties are normal and those of a
question are the same for all arms and seeds, so answers are correlated; abilities differ from seed to seed. A bound
stands 3.09 standard errors from the nominal rate: one in 1,000 such simulations passes it by chance, and the random
numbers are fixed.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from report_values import marked, run_of
from scipy.optimize import brentq
from verdict_fixtures import arm_of, decide

from kava.report.comparisons import compare_arms
from kava.report.finished import FinishedRun
from kava.report.statistics import compare, intervals
from kava.report.statistics.compare import Comparison
from kava.report.statistics.intervals import bootstrap_ci, wilson
from kava.report.statistics.p_values import minimal_detectable_effect, sign_flip_p
from kava.report.verdict.findings import NO_CONTROL_BEATEN, NO_DIFFERENCE
from kava.tasks.metric import STRICT_MATCH

pytestmark = pytest.mark.slow

DRAWS = 2_000
QUESTIONS = 250
# Standard deviation of difficulty; half of the questions are then answered alike by nearly all students.
SPREAD = 1.8
# Quadrature over a standard normal variable.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def noise(rate: float, draws: int = DRAWS) -> float:
    return 3.09 * math.sqrt(rate * (1 - rate) / draws)


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def answer(rng: np.random.Generator, abilities: np.ndarray, n: int = QUESTIONS) -> np.ndarray:
    """Right or wrong `[draws, ..., questions]` for abilities `[draws, ...]`; a draw has questions of its own."""
    difficulties = rng.normal(0, SPREAD, (len(abilities), *[1] * (abilities.ndim - 1), n))
    return rng.random((*abilities.shape, n)) < logistic(abilities[..., None] - difficulties)


def accuracy(ability: float | np.ndarray) -> Any:
    """Expected share of right answers over all questions that there could be."""
    return logistic(np.asarray(ability)[..., None] - SPREAD * NODES) @ WEIGHTS


def ability_of(rate: float) -> float:
    return float(brentq(lambda ability: accuracy(ability) - rate, -12, 12))


@pytest.mark.parametrize("rate", [0.05, 0.24, 0.46, 0.77, 0.94])
@pytest.mark.parametrize("n", [200, QUESTIONS, 1_319])
def test_wilson_interval_of_a_run_covers_its_accuracy_in_95_per_cent(n: int, rate: float) -> None:
    right = np.random.default_rng(n).binomial(n, rate, DRAWS)
    intervals = {count: wilson(count / n, n) for count in np.unique(right)}
    covered = np.mean([intervals[count][0] <= rate <= intervals[count][1] for count in right])
    assert covered >= 0.95 - noise(0.95)


def test_wilson_interval_of_a_mean_over_seeds_covers_it_in_at_least_95_per_cent() -> None:
    rng = np.random.default_rng(1)
    abilities = rng.normal(ability_of(0.46), 0.4, (DRAWS, 3))
    means = answer(rng, abilities).mean((1, 2))
    truths = accuracy(abilities).mean(1)
    intervals = {mean: wilson(mean, QUESTIONS) for mean in np.unique(means)}
    covered = np.mean([intervals[m][0] <= truth <= intervals[m][1] for m, truth in zip(means, truths, strict=True)])
    assert covered >= 0.95 - noise(0.95)


@pytest.mark.parametrize(("rate_a", "rate_b"), [(0.46, 0.40), (0.88, 0.84)])
def test_bootstrap_interval_covers_the_difference_of_these_students_in_95_per_cent(
    monkeypatch: pytest.MonkeyPatch, rate_a: float, rate_b: float
) -> None:
    # Fewer resamples make the edges noisier, which only lowers the coverage.
    monkeypatch.setattr(intervals, "RESAMPLES", 399)
    rng = np.random.default_rng(12)
    centres = np.array([ability_of(rate_a), ability_of(rate_b)])[:, None]
    abilities = rng.normal(centres, 0.4, (DRAWS, 2, 3))
    right = answer(rng, abilities).astype(np.int64)
    truths = 3 * (accuracy(abilities[:, 0]) - accuracy(abilities[:, 1])).mean(1)
    edges = [bootstrap_ci(summed) for summed in (right[:, 0] - right[:, 1]).sum(1)]
    covered = np.mean([low <= truth <= high for (low, high), truth in zip(edges, truths, strict=True)])
    assert covered >= 0.95 - noise(0.95)


ARMS = ("A", "B", "sft")  # flat, structured and their control
PAIRS = (("B", "A"), ("A", "sft"), ("B", "sft"))


def verdicts(right: np.ndarray) -> Iterator[tuple[str, list[Comparison]]]:
    """Outcome and rows of each experiment; `right` is `[draws, arms, seeds, questions]`."""
    for of_arms in right:
        runs: dict[str, dict[str, FinishedRun]] = {}
        table = {}
        for name, of_seeds in zip(ARMS, of_arms, strict=True):
            runs[name] = {str(seed): run_of(marked(marks)) for seed, marks in enumerate(of_seeds.tolist())}
            rates = {str(seed): float(rate) for seed, rate in enumerate(of_seeds.mean(1))}
            table[name] = arm_of(rates, of_seeds.shape[1])
        rows, refusals = compare_arms(PAIRS, runs, {name: list(seeds) for name, seeds in runs.items()}, STRICT_MATCH)
        assert not refusals
        yield decide(table, rows, ["sft"]).outcome, rows


FLIPS = np.random.default_rng(0).choice((-1.0, 1.0), (999, QUESTIONS))


def fast_sign_flip_p(differences: np.ndarray, flips: np.ndarray = FLIPS) -> float:
    """`sign_flip_p` as one product of matrices, with the same flips in every experiment."""
    flipped, observed = flips @ differences, differences.sum()
    # The sums are whole numbers: half of one is no rounding.
    beyond = min((flipped >= observed - 0.5).sum(), (flipped <= observed + 0.5).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(flips) + 1)))


def test_the_faster_permutation_test_of_these_simulations_is_that_of_the_report() -> None:
    right = answer(np.random.default_rng(6), np.full((20, 2, 3), 0.5)).astype(np.int64)
    for differences in (right[:, 0] - right[:, 1]).sum(1):
        expected = sign_flip_p(differences)
        assert abs(fast_sign_flip_p(differences) - expected) <= 2 * noise(expected / 2, len(FLIPS)) + 0.004


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the verdict reads, faster.

    A permutation test keeps its level with any number of resamples (Phipson and Smyth 2010). No outcome reads an
    interval or McNemar's p. statsmodels collects garbage in every correction, which takes longer than all the rest.
    """
    monkeypatch.setattr(compare, "sign_flip_p", fast_sign_flip_p)
    monkeypatch.setattr(compare, "bootstrap_ci", lambda differences: (differences.mean(), differences.mean()))
    monkeypatch.setattr(compare, "mcnemar_p", lambda *_: 1.0)
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


@pytest.mark.usefixtures("_fast")
def test_arms_that_are_equal_are_said_to_differ_in_at_most_5_per_cent_of_experiments() -> None:
    """Three seeds whose accuracies have a standard deviation of 6 points, as those of the demo's arms."""
    rng = np.random.default_rng(3)
    right = answer(rng, rng.normal(ability_of(0.46), 0.4, (DRAWS, len(ARMS), 3)))
    assert right.mean(-1).std(-1, ddof=1).mean() == pytest.approx(0.06, abs=0.005)
    claims = students = 0
    for outcome, rows in verdicts(right):
        claims += outcome not in (NO_DIFFERENCE, NO_CONTROL_BEATEN) or any(row.repeated for row in rows)
        students += any(row.shown for row in rows)
    assert claims / DRAWS <= 0.05 + noise(0.05)
    # The students do differ, and the test over questions sees it; it alone would be no ground for a claim about arms.
    assert students / DRAWS > 0.5


@pytest.mark.usefixtures("_fast")
def test_students_that_are_equal_are_said_to_differ_in_at_most_5_per_cent_of_experiments_of_one_seed() -> None:
    right = answer(np.random.default_rng(4), np.full((DRAWS, len(ARMS), 1), ability_of(0.46)))
    claims = sum(
        outcome not in (NO_DIFFERENCE, NO_CONTROL_BEATEN) or any(row.shown for row in rows)
        for outcome, rows in verdicts(right)
    )
    assert claims / DRAWS <= 0.05 + noise(0.05)


def test_a_difference_of_the_minimal_detectable_effect_is_shown_in_80_per_cent_of_experiments() -> None:
    """Of three seeds; at the first step of Holm's correction over three comparisons."""
    low = ability_of(0.46)

    def moments(gap: float) -> tuple[float, float]:
        """Mean and standard deviation of a question's mean difference between students this far apart in ability."""
        a, b = (logistic(ability - SPREAD * NODES) for ability in (low + gap, low))
        mean = float((a - b) @ WEIGHTS)
        within = float((a * (1 - a) + b * (1 - b)) @ WEIGHTS) / 3
        return mean, math.sqrt(within + float((a - b) ** 2 @ WEIGHTS) - mean**2)

    def beyond(gap: float) -> float:
        mean, sd = moments(gap)
        detectable = minimal_detectable_effect(sd, QUESTIONS, len(PAIRS))
        assert detectable is not None
        return mean - detectable

    gap = brentq(beyond, 0.01, 3)
    abilities = np.full((DRAWS, 2, 3), low) + np.array([[gap], [0.0]])
    right = answer(np.random.default_rng(5), abilities).astype(np.int64)
    flips = np.random.default_rng(1).choice((-1.0, 1.0), (intervals.RESAMPLES, QUESTIONS)).astype(np.float32)
    summed = (right[:, 0] - right[:, 1]).sum(1).astype(np.float32)
    detected = np.mean([len(PAIRS) * fast_sign_flip_p(differences, flips) < 0.05 for differences in summed])
    assert abs(detected - 0.8) <= noise(0.8)

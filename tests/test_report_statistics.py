"""The report's intervals and tests against closed forms, enumeration and other library routes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel

from kava.report.over_seeds import SeedLevel, seed_level
from kava.report.statistics import bootstrap_ci, compare, holm, mcnemar_p, sign_flip_p, wilson


def scores(*rights: list[int]) -> dict[str, dict[str, int]]:
    return {str(seed): {str(q): hit for q, hit in enumerate(right)} for seed, right in enumerate(rights)}


@pytest.mark.parametrize(("right", "n"), [(0, 32), (18, 60), (500, 500), (253.5, 500)])
def test_wilson_interval_is_the_closed_form(right: float, n: int) -> None:
    z, p = 1.959963984540054, right / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson(p, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_wilson_refuses_an_empty_evaluation() -> None:
    with pytest.raises(ValueError, match="n = 0"):
        wilson(0.0, 0)


@pytest.mark.parametrize("d", [[1, 1, 1, -1, 2, 0, 1, -2], [3, -1, 2, 2, -3, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0, 0]])
def test_sign_flip_p_equals_full_enumeration(d: list[int]) -> None:
    flips = np.array(list(itertools.product((-1, 1), repeat=len(d))))
    expected = np.mean(np.abs(flips @ np.array(d)) >= abs(sum(d)))
    assert sign_flip_p(np.array(d)) == pytest.approx(min(1.0, expected), abs=1e-12)


def test_sign_flip_p_on_many_ones_agrees_with_the_sign_test() -> None:
    # With differences of ±1 only, flipping signs is tossing coins, so the binomial test is the exact answer.
    d = np.array([1] * 60 + [-1] * 40 + [0] * 400)
    exact = binomtest(60, 100).pvalue
    assert sign_flip_p(d) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 9_999))


def test_sampled_p_is_never_zero_and_no_difference_gives_one() -> None:
    assert sign_flip_p(np.ones(200, dtype=int)) == pytest.approx(2 / 10_000)
    assert sign_flip_p(np.zeros(50, dtype=int)) == 1.0


def test_bootstrap_interval_is_near_the_normal_one_and_repeats() -> None:
    d = np.random.default_rng(0).integers(-1, 2, 900)
    half = 1.96 * d.std() / math.sqrt(len(d))
    assert bootstrap_ci(d) == pytest.approx((d.mean() - half, d.mean() + half), abs=0.006)
    assert bootstrap_ci(d) == bootstrap_ci(d)


def test_bootstrap_of_equal_differences_is_a_point() -> None:
    assert bootstrap_ci(np.full(20, -1)) == (-1.0, -1.0)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (12, 3), (40, 41)])
def test_mcnemar_is_the_binomial_test_on_discordant_pairs(only_a: int, only_b: int) -> None:
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar_p(only_a, only_b) == pytest.approx(expected, abs=1e-12)


def test_holm_multiplies_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []


def test_comparison_averages_seeds_within_questions() -> None:
    a = scores([1, 1, 1, 0], [1, 1, 0, 0])
    b = scores([0, 1, 0, 0], [0, 1, 1, 0])
    result = compare("structured", "flat", a, b)
    # Per question, over two seeds: +1, 0, 0, 0.
    assert result.delta == pytest.approx(0.25)
    assert result.n == 4
    assert result.p_value == 1.0
    assert result.discordant == {"0": (2, 0), "1": (1, 1)}
    assert result.mcnemar == pytest.approx({"0": 0.5, "1": 1.0})


def test_comparison_has_the_sign_of_a_minus_b() -> None:
    a, b = scores([1] * 30 + [0] * 20), scores([0] * 50)
    assert compare("a", "b", a, b).delta == pytest.approx(0.6)
    assert compare("b", "a", b, a).delta == pytest.approx(-0.6)
    assert compare("a", "b", a, b).ci95[0] > 0


def test_identical_arms_give_no_difference_without_a_warning() -> None:
    result = compare("a", "b", scores([1, 0, 1]), scores([1, 0, 1]))
    assert (result.delta, result.ci95, result.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_other_questions_are_refused_with_both_names() -> None:
    with pytest.raises(ValueError, match=r"'flat' and 'sft' cannot be compared.*1 of them"):
        compare("flat", "sft", scores([1, 0, 1]), scores([1, 0]))


def test_no_common_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="share no seed"):
        compare("flat", "sft", {"42": {"0": 1}}, {"43": {"0": 1}})


def test_seed_level_test_is_the_paired_t_test_on_accuracies() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(0, 2, (5, 40)) for _ in "ab")
    result = compare("a", "b", scores(*a.tolist()), scores(*b.tolist()))
    assert result.seed_level is not None
    assert result.seed_level.mean == pytest.approx(result.delta)
    expected = ttest_rel(a.mean(1), b.mean(1))
    assert result.seed_level.p_value == pytest.approx(expected.pvalue)
    assert result.seed_level.se == pytest.approx((a.mean(1) - b.mean(1)).std(ddof=1) / math.sqrt(5))


def test_one_seed_has_no_test_over_seeds_and_equal_differences_no_t() -> None:
    assert seed_level([3], 10) is None
    assert seed_level([2, 2], 10) == SeedLevel(0.2, 0.0, None)
    assert seed_level([0, 0], 10) == SeedLevel(0.0, 0.0, 1.0)

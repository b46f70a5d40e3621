"""The report's intervals and tests against closed forms, enumeration and other library routes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from report_values import marked, run_of
from scipy.stats import binomtest, ttest_rel
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from kava.report.clean import jsonable
from kava.report.comparisons import compare_arms
from kava.report.statistics.compare import cohens_h, compare
from kava.report.statistics.intervals import bootstrap_ci, wilson
from kava.report.statistics.p_values import (
    SeedLevel,
    holm,
    mcnemar_p,
    minimal_detectable_effect,
    seed_level,
    sign_flip_p,
)
from kava.tasks.metric import STRICT_MATCH


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
    result = compare("structured", "flat", a, b, STRICT_MATCH)
    # Per question, over two seeds: +1, 0, 0, 0.
    assert result.delta == pytest.approx(0.25)
    assert result.n == 4
    assert result.p_value == 1.0
    assert result.discordant == {"0": (2, 0), "1": (1, 1)}
    assert result.mcnemar == pytest.approx({"0": 0.5, "1": 1.0})


def test_comparison_has_the_sign_of_a_minus_b() -> None:
    a, b = scores([1] * 30 + [0] * 20), scores([0] * 50)
    assert compare("a", "b", a, b, STRICT_MATCH).delta == pytest.approx(0.6)
    assert compare("b", "a", b, a, STRICT_MATCH).delta == pytest.approx(-0.6)
    assert compare("a", "b", a, b, STRICT_MATCH).ci95[0] > 0


def test_identical_arms_give_no_difference_without_a_warning() -> None:
    result = compare("a", "b", scores([1, 0, 1]), scores([1, 0, 1]), STRICT_MATCH)
    assert (result.delta, result.ci95, result.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_other_questions_are_refused_with_both_names() -> None:
    with pytest.raises(ValueError, match=r"'flat' and 'sft' cannot be compared.*1 of them"):
        compare("flat", "sft", scores([1, 0, 1]), scores([1, 0]), STRICT_MATCH)


def test_no_common_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="share no seed"):
        compare("flat", "sft", {"42": {"0": 1}}, {"43": {"0": 1}}, STRICT_MATCH)


def test_seed_level_test_is_the_paired_t_test_on_accuracies() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(0, 2, (5, 40)) for _ in "ab")
    result = compare("a", "b", scores(*a.tolist()), scores(*b.tolist()), STRICT_MATCH)
    assert result.seed_level is not None
    assert result.seed_level.mean == pytest.approx(result.delta)
    expected = ttest_rel(a.mean(1), b.mean(1))
    assert result.seed_level.p_value == pytest.approx(expected.pvalue)
    assert result.seed_level.se == pytest.approx((a.mean(1) - b.mean(1)).std(ddof=1) / math.sqrt(5))


def test_one_seed_has_no_test_over_seeds_and_equal_differences_no_t() -> None:
    assert seed_level([3], 10) is None
    assert seed_level([2, 2], 10) == SeedLevel(0.2, 0.0, None)
    assert seed_level([0, 0], 10) == SeedLevel(0.0, 0.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.4), (0.06, 0.02), (1.0, 0.0), (0.3, 0.3)])
def test_effect_size_is_the_difference_of_arcsines_with_the_sign_of_a_minus_b(a: float, b: float) -> None:
    expected = 2 * (math.asin(math.sqrt(a)) - math.asin(math.sqrt(b)))
    assert cohens_h(a, b) == pytest.approx(expected, abs=1e-12)
    assert cohens_h(b, a) == -cohens_h(a, b)


@pytest.mark.parametrize("comparisons", [1, 3, 36])
@pytest.mark.parametrize("n", [200, 250, 500, 1_319])
def test_the_paired_t_test_has_80_per_cent_power_for_the_minimal_detectable_effect(n: int, comparisons: int) -> None:
    sd = 0.6
    effect = minimal_detectable_effect(sd, n, comparisons)
    assert effect is not None
    assert TTestPower().power(effect / sd, n, 0.05 / comparisons) == pytest.approx(0.8, abs=0.02)


def test_nothing_is_detectable_where_no_question_differs_or_too_few_were_asked() -> None:
    assert minimal_detectable_effect(0.0, 500, 1) is None
    assert minimal_detectable_effect(1.0, 5, 1) is None


def rows_of(*arms: np.ndarray) -> list[dict[str, Any]]:
    """Each arm against the next; an arm is right or wrong `[seeds, questions]`."""
    runs = {
        str(arm): {str(seed): run_of(marked(marks)) for seed, marks in enumerate(right.tolist())}
        for arm, right in enumerate(arms)
    }
    declared = {arm: list(of_arm) for arm, of_arm in runs.items()}
    rows, refusals = compare_arms([(str(i), str(i + 1)) for i in range(len(arms) - 1)], runs, declared, STRICT_MATCH)
    assert refusals == []
    plain: list[dict[str, Any]] = jsonable(rows)
    return plain


def test_a_row_says_how_large_its_difference_is_and_what_it_could_have_shown() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.random((3, 250)) < rate for rate in (0.5, 0.4))
    (row,) = rows_of(a, b)
    assert row["effect_size"] == pytest.approx(cohens_h(a.mean(), b.mean()))
    differences = (a.astype(float) - b).mean(0)
    assert row["difference_sd"] == pytest.approx(differences.std(ddof=1))
    assert row["minimal_detectable_effect"] == minimal_detectable_effect(row["difference_sd"], 250, 1)
    # Of more comparisons each must clear a higher bar.
    assert rows_of(a, b, a)[0]["minimal_detectable_effect"] > row["minimal_detectable_effect"]


def test_the_tests_over_seeds_have_a_holm_correction_of_their_own() -> None:
    rng = np.random.default_rng(6)
    rows = rows_of(*(rng.random((4, 60)) < rate for rate in (0.7, 0.5, 0.45, 0.3)))
    raw = [row["seed_level"]["p_value"] for row in rows]
    adjusted = [row["seed_level"]["p_value_holm"] for row in rows]
    assert adjusted == pytest.approx(list(multipletests(raw, method="holm")[1]))
    assert adjusted != raw


def test_seeds_that_all_differ_alike_come_first_in_the_correction_and_have_no_p() -> None:
    first = np.array([[1, 1, 0, 0]] * 3)
    rows = rows_of(first, np.array([[1, 0, 0, 0]] * 3), np.array([[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]))
    assert [row["seed_level"]["p_value_holm"] for row in rows] == [None, rows[1]["seed_level"]["p_value"]]


def test_a_second_seed_with_the_same_marks_leaves_the_interval_as_it_is() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.integers(0, 2, 60).tolist() for _ in "ab")
    one = compare("a", "b", scores(a), scores(b), STRICT_MATCH)
    two = compare("a", "b", scores(a, a), scores(b, b), STRICT_MATCH)
    assert two.ci95 == pytest.approx(one.ci95)
    assert two.difference_sd == pytest.approx(one.difference_sd)
    assert one.ci95[0] < one.delta < one.ci95[1]

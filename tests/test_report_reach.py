"""After how many steps one curve has what another had: planted curves, against NumPy's interpolation and SciPy's t."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from kava.report.evaluated import AtStep
from kava.report.statistics.reach import improving_steps, reached_by, steps_to_reach
from kava.report.steps import StepsSaved, steps_saved
from kava.report.verdict.saved import cell, of_steps
from kava.tasks.metric import ANSWER_NLL, STRICT_MATCH, TEACHER_AGREEMENT

SFT = {0: 9.79, 50: 3.131, 100: 2.258, 150: 2.045}
KV = {0: 9.79, 50: 2.606, 100: 1.991, 150: 1.834}
CONFIGS = {"kv": {"aligner": {"kind": "identity"}}, "shuffled": {"aligner": {"kind": "identity"}}}
CONFIGS |= {"sft": {"aligner": None}, "logit_kd": {"aligner": None}}
CONTROLS = ["sft", "logit_kd", "shuffled"]


def test_the_crossing_of_a_falling_curve_is_that_of_numpy() -> None:
    steps, values = list(KV), list(KV.values())
    for target in (5.0, 2.606, 2.258, 2.045, 1.9):
        expected = np.interp(-target, -np.array(values), steps)
        assert steps_to_reach(KV, target, -1) == pytest.approx(expected)
    assert steps_to_reach(KV, SFT[100], -1) == pytest.approx(50 + 50 * (2.606 - 2.258) / (2.606 - 1.991))


def test_a_rising_curve_is_followed_upwards() -> None:
    assert steps_to_reach({0: 0.1, 10: 0.3, 20: 0.7}, 0.5, 1) == pytest.approx(15)
    assert steps_to_reach({0: 0.1, 10: 0.3}, 0.31, 1) is None


def test_a_curve_that_turns_worse_is_followed_by_its_best_so_far() -> None:
    worse = {0: 5.0, 10: 4.0, 20: 6.0, 30: 2.0}
    assert steps_to_reach(worse, 4.0, -1) == pytest.approx(10)
    # From the 4 of step 10, which it has at step 20 as well, to the 2 of step 30; not from the 6 of step 20.
    assert steps_to_reach(worse, 3.0, -1) == pytest.approx(25)


def test_what_the_first_step_has_is_reached_there_since_none_before_it_is_known() -> None:
    assert steps_to_reach({10: 3.0, 50: 2.0}, 3.5, -1) == 10
    assert steps_to_reach({0: 3.0, 50: 2.0}, 3.5, -1) == 0


def test_a_curve_reaches_what_it_had_itself_at_that_very_step() -> None:
    found = reached_by({"1": SFT}, {"1": SFT}, -1)
    assert {step: (at.steps, at.ratio) for step, at in found.items()} == {50: (50, 1), 100: (100, 1), 150: (150, 1)}


def test_steps_at_which_the_control_was_no_better_than_before_are_left_out() -> None:
    turning = {0: 3.0, 10: 2.0, 20: 2.5, 30: 1.9}
    assert improving_steps([turning], -1) == [10, 30]
    # By the mean over seeds: one seed that got better is not enough.
    assert improving_steps([turning, {0: 3.0, 10: 2.0, 20: 1.8, 30: 1.7}], -1) == [10, 30]


def test_steps_are_a_mean_over_seeds_with_the_t_interval_of_scipy() -> None:
    ends = {"1": 2.0, "2": 1.5, "3": 1.0}
    arm = {seed: {0: 3.0, 60: end} for seed, end in ends.items()}
    (at,) = reached_by(arm, {seed: {0: 3.0, 100: 2.0} for seed in ends}, -1).values()
    each = [60 * (3 - 2) / (3 - end) for end in ends.values()]
    assert list(at.seeds.values()) == pytest.approx(each)
    assert at.steps == pytest.approx(np.mean(each))
    assert at.ratio == pytest.approx(np.mean(each) / 100)
    low, high = t.interval(0.95, 2, np.mean(each), np.std(each, ddof=1) / np.sqrt(3))
    assert at.ci95 == pytest.approx((max(0, low), high))


def test_fewer_than_three_seeds_have_no_interval_and_one_that_never_gets_there_leaves_no_mean() -> None:
    control = {seed: {0: 3.0, 100: 2.0} for seed in "123"}
    two = reached_by({seed: {0: 3.0, 50: 1.0} for seed in "12"}, {s: control[s] for s in "12"}, -1)[100]
    assert (two.steps, two.ci95) == (25, None)
    one = reached_by({"1": {0: 3.0, 50: 1.0}, "2": {0: 3.0, 50: 1.0}, "3": {0: 3.0, 50: 2.5}}, control, -1)[100]
    assert (one.steps, one.ratio, one.ci95, one.within) == (None, None, None, 50)
    assert one.seeds == {"1": 25, "2": 25, "3": None}


def saved_of(curves: dict[str, list[dict[int, float]]], start: float | None = 9.79) -> list[StepsSaved]:
    """Of arms with a curve per seed, each declared against every control."""

    def at(values: dict[int, float]) -> dict[int, AtStep]:
        return {step: AtStep({"answer_nll": value}, 10, 2.0 * step) for step, value in values.items() if step}

    seeds = {arm: [str(i) for i in range(len(of_arm))] for arm, of_arm in curves.items()}
    at_steps = {arm: {seeds[arm][i]: at(values) for i, values in enumerate(of)} for arm, of in curves.items()}
    first = None if start is None else AtStep({"answer_nll": start}, 10, 0.0)
    pairs = [(arm, control) for arm in curves for control in CONTROLS if control in curves and arm != control]
    return steps_saved(at_steps, seeds, pairs, CONTROLS, CONFIGS, first, [ANSWER_NLL])


def test_pairs_are_those_of_an_arm_with_kv_and_a_control_without() -> None:
    rows = saved_of({"kv": [KV], "sft": [SFT], "logit_kd": [SFT], "shuffled": [SFT]})
    assert [(row.arm, row.control) for row in rows] == [("kv", "sft"), ("kv", "logit_kd")]
    assert rows[0].to_dict()["metric"] == "answer_nll"
    turned = steps_saved(
        {arm: {"1": {5: AtStep({"answer_nll": 1.0}, 9, 1.0)}} for arm in ("kv", "sft")},
        {"kv": ["1"], "sft": ["1"]}, [("sft", "kv")], ["sft"], CONFIGS, None, [ANSWER_NLL, TEACHER_AGREEMENT],
    )  # fmt: skip
    assert [(row.arm, row.control, row.at[5].steps) for row in turned] == [("kv", "sft", 5)]


def test_a_pair_without_scores_of_every_declared_seed_is_left_out() -> None:
    assert saved_of({"kv": [KV, {}], "sft": [SFT, SFT]}) == []
    assert saved_of({"kv": [KV, KV], "sft": [{}, SFT]}) == []
    # What the arms began from is no score of theirs.
    assert saved_of({"kv": [{}], "sft": [SFT]}) == []


def test_the_sentence_says_after_how_many_steps_and_what_the_seeds_tell() -> None:
    rows = saved_of({"kv": [KV], "sft": [SFT]})
    said = "kv reaches the answer NLL that sft had at step 150 on validation questions after 96 steps (one seed)"
    assert of_steps(rows, ANSWER_NLL) == [said]
    assert of_steps(rows, STRICT_MATCH) == []
    assert cell(rows[0].at[150]) == ("96", "64%, one seed")

    def faster(by: float) -> dict[int, float]:
        return {step: value - by * (step > 0) for step, value in KV.items()}

    (two,) = of_steps(saved_of({"kv": [KV, faster(0.1)], "sft": [SFT, SFT]}), ANSWER_NLL)
    assert two.endswith("after 92 steps (2 seeds, 96 and 87: under 3, no interval)")
    rows = saved_of({"kv": [KV, faster(0.1), faster(0.2)], "sft": [SFT] * 3})
    (three,) = of_steps(rows, ANSWER_NLL)
    assert three.endswith("after 87 steps (95% interval over 3 seeds 67 to 108)")
    assert cell(rows[0].at[150]) == ("87", "58%, 67 to 108")


def test_what_is_never_reached_is_said_with_the_steps_that_were_scored() -> None:
    rows = saved_of({"kv": [SFT], "sft": [KV]})
    what = "the answer NLL that sft had at step 150 on validation questions"
    assert of_steps(rows, ANSWER_NLL) == [f"kv never reaches, within 150 steps, {what}"]
    assert cell(rows[0].at[150]) == ("not within 150", "")
    rows = saved_of({"kv": [KV, SFT], "sft": [SFT, KV]})
    assert of_steps(rows, ANSWER_NLL) == [f"kv never reaches, in seed 1 of 2, within 150 steps, {what}"]
    assert cell(rows[0].at[150]) == ("not within 150", "1 of 2 seeds")

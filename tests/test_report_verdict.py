"""Each rule of the verdict on planted tables."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
from verdict_fixtures import ALIKE, BOTH_BEAT_SFT, arms, decide, many, row

from kava.config import load_config
from kava.config.arms import STRUCTURED, Aligner
from kava.report.format import capital
from kava.report.statistics.compare import Comparison
from kava.report.verdict.findings import FLAT_WINS, NO_CONTROL_BEATEN, NO_DIFFERENCE, STRUCTURED_WINS, about_structure
from kava.report.verdict.verdict import decide as decide_by_configs
from kava.tasks.metric import STRICT_MATCH


def test_structured_beats_flat_with_the_numbers_in_one_sentence() -> None:
    verdict = decide(arms(), [row("B", "A", 0.07, 0.012), *BOTH_BEAT_SFT], ["sft"])
    assert verdict.outcome == STRUCTURED_WINS
    assert verdict.sentence.startswith("A and B beat sft by 10.0 points; structured beats flat: ")
    for part in ("+7.0 points", "+4.0 to +10.0", "p = 0.012", "500 questions", "3 seeds"):
        assert part in verdict.sentence
    assert verdict.sentence.count(". ") == 0


def test_flat_beats_structured_whichever_way_the_pair_was_declared() -> None:
    for pair in (row("B", "A", -0.07), row("A", "B", 0.07)):
        verdict = decide(arms(), [pair, *BOTH_BEAT_SFT], ["sft"])
        assert verdict.outcome == FLAT_WINS
        # The winner is named first and the difference is turned with it.
        assert "for A and" in verdict.sentence
        assert "+7.0 points (95% interval +4.0 to +10.0" in verdict.sentence


@pytest.mark.parametrize("p", [0.05, 0.2, 1.0])
def test_no_difference_at_five_per_cent_or_more(p: float) -> None:
    assert decide(arms(), [row("B", "A", 0.07, p)], ["sft"]).outcome == NO_DIFFERENCE
    verdict = decide(arms(), [row("B", "A", 0.07, p), *BOTH_BEAT_SFT], ["sft"])
    assert verdict.outcome == "A and B beat sft"
    assert verdict.headline == "A and B beat sft by 10.0 points; no difference shown between structured and flat"


def test_control_message_goes_first_even_if_structured_beats_flat() -> None:
    rows = [row("B", "A", 0.1), row("A", "sft", -0.08), row("B", "sft", 0.02, 0.4)]
    verdict = decide(arms(), rows, ["sft"])
    assert verdict.outcome == NO_CONTROL_BEATEN
    assert verdict.sentence.startswith("No KV arm is shown to beat its control: ")
    assert "among the KV arms: structured beats flat" in verdict.sentence


def test_a_kv_arm_must_beat_every_control_it_meets() -> None:
    table = arms(names="B sft shuffled")
    rows = [row("B", "sft", 0.1), row("shuffled", "B", 0.0, 0.9)]
    verdict = decide(table, rows, ["sft", "shuffled"])
    assert verdict.outcome == NO_CONTROL_BEATEN
    assert verdict.headline == "No KV arm is shown to beat all its controls"


def test_shuffled_structured_arm_is_a_control_and_no_structure_pair() -> None:
    rows = [row("B", "A", 0.01, 0.8), row("A", "shuffled", -0.2)]
    verdict = decide(arms(names="A B shuffled"), rows, ["shuffled"])
    assert verdict.outcome == NO_CONTROL_BEATEN
    assert "among the KV arms: no difference shown between structured and flat" in verdict.sentence


def test_arm_that_missed_its_control_is_named() -> None:
    rows = [row("B", "A", 0.1), row("A", "sft", 0.0, 0.9), row("B", "sft", 0.1)]
    verdict = decide(arms(), rows, ["sft"])
    assert verdict.headline == "A is not shown to beat its control; B beats sft by 10.0 points; structured beats flat"
    assert "not shown to beat" not in " ".join(verdict.numbers)
    apart = decide(arms(names="A B matched sft"), [*rows[1:], row("B", "matched", 0.1)], ["sft"])
    # The answer is of other arms, so that the headline need not begin with this one.
    assert apart.headline == "B beats sft by 10.0 points; structured beats flat"
    assert apart.numbers[0] == "A is not shown to beat its control"


def test_structure_needs_all_its_pairs() -> None:
    table = arms(names="A matched B sft")
    mixed = [row("B", "A", 0.01, 0.7), row("B", "matched", 0.1), *BOTH_BEAT_SFT]
    assert decide(table, mixed[:2], ["sft"]).outcome == NO_DIFFERENCE
    assert decide(table, mixed, ["sft"]).outcome == "A and B beat sft"
    assert "no consistent difference" in decide(table, mixed, ["sft"]).headline
    agreed = [row("B", "A", 0.08), row("B", "matched", 0.1), *BOTH_BEAT_SFT]
    assert decide(table, agreed, ["sft"]).outcome == STRUCTURED_WINS


def test_without_such_a_pair_the_verdict_speaks_of_what_was_compared() -> None:
    table = arms(names="A matched")
    shown = decide(table, [row("A", "matched", -0.1)], [])
    assert shown.outcome == "matched beats A"
    assert decide(table, [row("A", "matched", -0.1, 0.6)], []).outcome == NO_DIFFERENCE
    assert "no control arm was run" in shown.sentence


def test_many_arms_those_that_beat_all_their_controls_are_the_headline_and_numbers_are_counts() -> None:
    rows = [row(name, control, 0.1) for name in "AB" for control in ("sft", "shuffled")]
    verdict = decide(many(6, "A B sft shuffled"), [*ALIKE, *rows], ["sft", "shuffled"])
    assert verdict.outcome == "A and B beat sft and shuffled"
    assert verdict.numbers == [
        f"of 8 KV arms compared with {control}, 2 are better (A, B) and the other 6 show no difference"
        for control in ("sft", "shuffled")
    ]
    assert verdict.headline == "A and B beat sft and shuffled by 10.0 points"


def test_many_arms_an_arm_that_misses_one_control_is_no_winner_and_a_worse_one_is_named() -> None:
    rows = [row("A", "sft", 0.1), row("A", "shuffled", 0.0, 0.9), row("sft", "B", 0.1), row("B", "shuffled", 0.0, 0.9)]
    verdict = decide(many(6, "A B sft shuffled"), [*ALIKE, *rows], ["sft", "shuffled"])
    assert verdict.outcome == NO_CONTROL_BEATEN
    assert verdict.headline == "No KV arm is shown to beat all its controls"
    assert verdict.numbers == [
        "of 8 KV arms compared with sft, 1 is better (A), 1 is worse (B) and the other 6 show no difference",
        "of 8 KV arms compared with shuffled, none is shown to be better and 8 show no difference",
    ]


def test_many_arms_winners_over_different_controls_are_named_apart() -> None:
    rows = [row("A", "sft", 0.1), row("B", "shuffled", 0.1)]
    verdict = decide(many(6, "A B sft shuffled"), [*ALIKE, *rows], ["sft", "shuffled"])
    assert verdict.outcome == "A beats sft; B beats shuffled"


def test_many_arms_what_kv_arms_show_among_themselves_comes_after_the_controls() -> None:
    rows = [*BOTH_BEAT_SFT, row("B", "A", 0.1), row("x0", "x1", 0.1), row("x2", "x1", 0.0, 0.9)]
    verdict = decide(many(6, "A B sft shuffled"), [*ALIKE, *rows], ["sft", "shuffled"])
    assert verdict.outcome == STRUCTURED_WINS
    assert verdict.headline == "A and B beat sft by 10.0 points; structured beats flat"
    assert verdict.numbers[-1] == (
        "among the KV arms, structured beats flat, x0 beats x1 and no difference shown in 1 other comparison"
    )


def test_many_arms_that_all_beat_their_controls_leave_the_headline_to_structure() -> None:
    rows = [row(name, "sft", 0.1) for name in ("A", "B", *(f"x{i}" for i in range(6)))]
    assert decide(many(6, "A B sft"), [*rows, row("B", "A", 0.1)], ["sft"]).outcome == STRUCTURED_WINS
    assert decide(many(6, "A B sft"), rows, ["sft"]).outcome.endswith("x4 and x5 beat sft")


def test_many_arms_without_controls_name_only_the_differences() -> None:
    rows = [row(f"x{i}", f"x{i + 1}", 0.0, 0.9) for i in range(7)]
    assert decide(many(9, ""), rows, []).outcome == NO_DIFFERENCE
    verdict = decide(many(9, ""), [*rows, row("x0", "x8", 0.1)], [])
    assert (verdict.outcome, verdict.numbers) == (
        "x0 beats x8",
        ["among the KV arms, x0 beats x8 and no difference shown in 7 other comparisons"],
    )


def test_controls_first_then_what_kv_arms_show_among_themselves_with_few_and_with_many_comparisons() -> None:
    few = [row("A", "sft", 0.1), row("matched", "sft", 0.1), row("A", "matched", 0.0, 0.9)]
    alone = decide(arms(names="A matched sft"), few[:2], ["sft"])
    assert alone.outcome == "A and matched beat sft"
    verdict = decide(arms(names="A matched sft"), few, ["sft"])
    assert verdict.outcome == alone.outcome
    assert verdict.headline == "A and matched beat sft by 10.0 points; no difference shown between A and matched"
    assert len(verdict.numbers) == 3
    more = [*few, *(row(f"x{i}", "sft", 0.1) for i in range(4))]
    said = decide(many(4, "A matched sft"), more, ["sft"])
    assert said.outcome == "A, matched, x0, x1, x2 and x3 beat sft"
    assert said.headline.startswith(
        "A, matched, x0, x1, x2 and x3 beat sft by 10.0 points; no difference shown between A"
    )


def test_controls_compared_with_each_other_are_told_of() -> None:
    rows = [row("logit_kd", "sft", 0.05), row("A", "sft", 0.1)]
    few = decide(arms(names="A sft logit_kd"), rows, ["sft", "logit_kd"])
    assert few.outcome == "A beats sft"
    assert few.numbers[-1].startswith("among the controls: strict match is 44.0% for logit_kd and 43.0% for sft")
    lone = decide(arms(names="sft logit_kd"), rows[:1], ["sft", "logit_kd"])
    assert lone.outcome == "logit_kd beats sft"
    table = many(6, "A sft shuffled logit_kd")
    numbers = decide(table, [*ALIKE, *rows], ["sft", "shuffled", "logit_kd"]).numbers
    assert numbers[-1] == "among the controls, logit_kd beats sft"


def test_an_arm_is_said_to_beat_no_control_that_it_never_met() -> None:
    rows = [row("A", "sft", 0.1), row("B", "shuffled", 0.1)]
    verdict = decide(arms(names="A B sft shuffled"), rows, ["sft", "shuffled"])
    assert verdict.outcome == "A beats sft; B beats shuffled"


def test_a_pair_about_structure_differs_in_nothing_but_the_aligner() -> None:
    flat, structured = (
        {"aligner": {"kind": "flat"}, "kv_weight": 1.0},
        {"aligner": {"kind": "structured"}, "kv_weight": 1.0},
    )
    assert about_structure(flat, structured)
    assert not about_structure(flat, {**structured, "kv_weight": 2.0})
    assert not about_structure(flat, flat)
    assert not about_structure(structured, {**structured, "aligner": None})
    configs = {"A": flat, "B": {**structured, "kv_weight": 2.0}}
    assert decide_by_configs(arms(names="A B"), [row("B", "A", 0.07)], [], configs, STRICT_MATCH).outcome == "B beats A"


@pytest.mark.parametrize("kind", [get_args(get_type_hints(each)["kind"])[0] for each in get_args(get_args(Aligner)[0])])
def test_the_report_and_the_configuration_call_the_same_aligners_flat(kind: str) -> None:
    """By default a structured arm is compared with every flat one, `linear` among them, as a pair about structure."""
    arms = {name: {"aligner": {"kind": each}} for name, each in (("a", "structured"), ("b", kind))}
    declared = ("a", "b") in load_config(None, {"arms": {"flat": None, "structured": None} | arms}).declared_comparisons
    assert declared == about_structure(arms["a"], arms["b"]) == (kind not in STRUCTURED)


def test_a_name_is_shown_as_it_is_where_a_sentence_begins() -> None:
    assert decide(arms(names="x0 matched"), [row("matched", "x0", 0.1)], []).headline == "matched beats x0"
    assert capital("three/flat beats one/flat", STRICT_MATCH) == "three/flat beats one/flat"
    assert (
        capital("three/flat is not shown to beat its control", STRICT_MATCH)
        == "three/flat is not shown to beat its control"
    )
    assert capital("among the controls: x", STRICT_MATCH)[:5] == "Among"
    assert capital("strict match is 58.0% for a", STRICT_MATCH)[:6] == "Strict"
    assert decide(arms(), [row("B", "A", 0.0, 0.9)], []).headline[:2] == "No"


def test_across_experiments_a_claim_names_both_and_its_points_and_is_kept_from_the_comparisons_of_arms() -> None:
    names = "A B matched x0 sft"
    pairs = [("matched", "A"), ("x0", "B")]
    rows = [row("matched", "A", -0.1), row("x0", "B", 0.02, 0.4), *BOTH_BEAT_SFT, row("B", "A", 0.07)]
    verdict = decide(arms(names=names), rows, ["sft"], across=pairs)
    assert verdict.outcome == STRUCTURED_WINS
    assert verdict.headline == (
        "A beats matched by 10.0 points, 95% interval +7.0 to +13.0; no difference shown between x0 and B, "
        "+2.0 points, 95% interval −1.0 to +5.0; A and B beat sft by 10.0 points; B beats A"
    )
    # A control that is not beaten still comes first.
    missed = [*rows[:2], row("A", "sft", 0.0, 0.9), row("B", "sft", 0.0, 0.9)]
    verdict = decide(arms(names=names), missed, ["sft"], across=pairs)
    assert verdict.headline.startswith("No KV arm is shown to beat its control; A beats matched by 10.0 points")
    one = decide(arms(names=names), [*rows[:2], row("A", "sft", 0.0, 0.9), rows[3]], ["sft"], across=pairs)
    assert one.headline.startswith(
        "A is not shown to beat its control; B beats sft by 10.0 points; A beats matched by 10.0 points"
    )


def test_only_runs_that_are_the_same_leave_nothing_to_show() -> None:
    same = replace(row("B", "A", 0.0), identical=True, p_value_holm=None)
    verdict = decide(arms(), [same], [], across=[("B", "A")])
    assert (verdict.outcome, verdict.headline) == (
        NO_DIFFERENCE,
        "Nothing shown: only runs that are the same were compared",
    )
    assert "B and A" in verdict.numbers[0]


def test_the_controls_they_beat_are_named_with_the_gain_of_each_of_few_arms_else_the_range() -> None:
    few = [row("B", "A", 0.0, 0.9), row("A", "sft", 0.08), row("B", "sft", 0.15)]
    assert decide(arms(), few, ["sft"]).headline.startswith("A and B beat sft by 8.0 and 15.0 points; ")
    # Whichever way the pair was declared.
    turned = [few[0], row("sft", "A", -0.08), few[2]]
    assert decide(arms(), turned, ["sft"]).headline.startswith("A and B beat sft by 8.0 and 15.0 points; ")
    both = [row("A", "sft", 0.08), row("A", "shuffled", 0.2), row("B", "sft", 0.15), row("B", "shuffled", 0.17)]
    verdict = decide(arms(names="A B sft shuffled"), both, ["sft", "shuffled"])
    assert verdict.headline == "A and B beat sft and shuffled by 8.0 to 20.0 points"
    assert verdict.outcome == "A and B beat sft and shuffled"


@pytest.mark.parametrize("pair", [row("B", "A", -0.07), row("A", "B", 0.07)])
def test_each_arm_has_its_own_accuracy_whichever_way_the_pair_was_declared(pair: Comparison) -> None:
    verdict = decide(arms(), [pair, *BOTH_BEAT_SFT], ["sft"])
    assert "strict match is 51.0% for A and 58.0% for B" in verdict.sentence  # as planted, whatever the difference

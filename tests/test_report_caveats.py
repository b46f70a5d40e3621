"""What the verdict must admit: few seeds, few questions, unequal terms, and whose intervals they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from verdict_fixtures import ALIKE, BOTH_BEAT_SFT, arms, decide, many, row

from kava.report.verdict.conclusion import differences, sentence
from kava.report.verdict.findings import NO_CONTROL_BEATEN, NO_DIFFERENCE, TOO_FEW_SEEDS


@pytest.mark.parametrize(("n", "rate"), [(32, 0.0), (32, 1 / 32), (1_319, 0.015)])
def test_accuracy_about_zero_allows_no_conclusion(n: int, rate: float) -> None:
    verdict = decide(arms(n=n, rate=rate, seeds=1), [row("B", "A", 0.0, 1.0), *BOTH_BEAT_SFT], ["sft"])
    assert verdict.outcome == NO_DIFFERENCE
    assert "No arm answers these questions: nothing can be concluded from accuracy" in verdict.sentence


def test_few_seeds_few_questions_and_unequal_terms_are_admitted() -> None:
    rows = [row("B", "A", 0.07), *BOTH_BEAT_SFT]
    for seeds, said in ((1, "one seed, which cannot show"), (2, "only 2 seeds, too few to show")):
        few = [row("B", "A", 0.07, seeds=seeds)]
        assert said in decide(arms(seeds=3), few, ["sft"]).sentence
    assert "only 199 questions" in decide(arms(n=199), rows, ["sft"]).sentence
    assert "only" not in decide(arms(n=200), rows, ["sft"]).sentence
    assert (
        "the comparison is not fair as it stands: 1 mismatch"
        in decide(arms(), rows, ["sft"], ("steps differ.",)).sentence
    )


def test_comparison_that_could_not_be_made_shows_nothing() -> None:
    verdict = decide(arms(), [row("B", "A", None, None)], ["sft"])
    assert verdict.outcome == NO_DIFFERENCE
    assert "not comparable: B and A" in verdict.sentence


def test_a_difference_is_repeated_by_a_t_test_over_three_seeds_or_more_and_not_before() -> None:
    assert row("B", "A", 0.07, anew=0.05).repeated
    assert row("B", "A", 0.07, anew=None).repeated  # every seed has the same difference
    for doubtful in (row("B", "A", 0.07, anew=0.06), row("B", "A", 0.07, seeds=2), row("B", "A", 0.07, seeds=1)):
        assert doubtful.unrepeated
        assert not doubtful.repeated
    nothing = row("B", "A", 0.07, 0.2)
    assert not nothing.unrepeated
    assert not nothing.repeated
    assert nothing.caveat is row("B", "A", 0.07).caveat is None
    assert row("B", "A", 0.07, anew=0.3).caveat == "differs in these students; not shown to repeat over seeds"
    assert row("B", "A", 0.07, seeds=1).caveat == "differs in these students; one seed cannot show that it repeats"


def test_one_seed_tells_of_these_students_and_never_that_an_arm_beats_another() -> None:
    rows = [row("B", "A", 0.07, seeds=1), row("A", "sft", 0.0, 0.9, seeds=1), row("B", "sft", 0.1, seeds=1)]
    ahead = decide(arms(seeds=1), rows, ["sft"])
    assert ahead.outcome == TOO_FEW_SEEDS
    assert ahead.headline == (
        "A is not shown to beat its control; B scored higher than sft in these students, by 10.0 points; structured "
        "scored higher than flat in these students (with one seed this shows nothing about the arms)"
    )
    assert "+7.0 points" in ahead.sentence
    behind = decide(arms(seeds=1), [rows[0], rows[1], row("B", "sft", -0.1, seeds=1)], ["sft"])
    assert behind.outcome == NO_CONTROL_BEATEN
    assert behind.numbers[-1].startswith(
        "among the KV arms: structured scored higher than flat in these students (with one seed this shows nothing "
        "about the arms), strict match is "
    )
    assert decide(arms(seeds=1), rows[:1], []).outcome == TOO_FEW_SEEDS
    for verdict in (ahead, behind):
        assert "beats" not in verdict.sentence
        assert "better" not in verdict.sentence


def test_one_seed_tells_of_the_controls_first_where_all_arms_scored_higher_than_their_control() -> None:
    rows = [row("B", "A", 0.0, 0.9, seeds=1), row("A", "sft", 0.1, seeds=1), row("B", "sft", 0.1, seeds=1)]
    verdict = decide(arms(seeds=1), rows, ["sft"])
    assert verdict.outcome == TOO_FEW_SEEDS
    assert verdict.headline == (
        "A and B scored higher than sft in these students, by 10.0 points (with one seed this shows nothing about the "
        "arms); no difference shown between structured and flat"
    )


def test_enough_seeds_that_do_not_confirm_it_put_the_controls_first() -> None:
    rows = [row("B", "A", 0.1), *(row(name, "sft", 0.07, anew=0.3) for name in "AB")]
    verdict = decide(arms(), rows, ["sft"])
    assert verdict.outcome == NO_CONTROL_BEATEN
    assert verdict.headline == (
        "A and B scored higher than sft in these students, by 7.0 points (not shown for students trained anew: "
        "Holm-adjusted p = 0.3 over 3 seeds); structured beats flat"
    )


def test_a_difference_that_the_seeds_do_not_confirm_is_no_claim_about_structure() -> None:
    doubtful = row("B", "A", 0.07, anew=0.3)
    verdict = decide(arms(), [doubtful], [])
    assert verdict.outcome == NO_DIFFERENCE
    assert verdict.headline == (
        "structured scored higher than flat in these students "
        "(not shown for students trained anew: Holm-adjusted p = 0.3 over 3 seeds)"
    )
    assert "not shown to repeat over seeds: B and A" in verdict.caveats
    assert decide(arms(), [doubtful, *BOTH_BEAT_SFT], ["sft"]).outcome == "A and B beat sft"
    rows = [row(name, "sft", 0.07, anew=0.3) for name in "AB"]
    verdict = decide(many(6, "A B sft shuffled"), [*ALIKE, *rows], ["sft", "shuffled"])
    assert verdict.outcome == NO_CONTROL_BEATEN
    assert "2 are higher in these students only (A, B)" in verdict.numbers[0]
    assert "not shown to repeat over seeds: 2 of 2 differences" in verdict.caveats


def test_intervals_are_always_said_to_be_of_these_students() -> None:
    for seeds in (1, 3, 5):
        caveats = decide(arms(), [row("B", "A", 0.07, seeds=seeds)], []).caveats
        assert "intervals and their p are over questions, of these students" in caveats


def test_seeds_are_those_of_the_arms_that_were_compared() -> None:
    table = arms(names="A B sft") | arms(names="matched", seeds=1)
    assert "3 seeds" in decide(table, [row("B", "A", 0.07)], []).caveats


def test_a_p_at_the_floor_of_the_permutation_test_is_a_bound() -> None:
    floor = decide(arms(), [row("B", "A", 0.07, 0.0002)], [])
    assert "Holm-adjusted p ≤ 0.0002" in floor.sentence
    assert "Holm-adjusted p = 0.00021" in decide(arms(), [row("B", "A", 0.07, 0.00021)], []).sentence


def test_a_difference_over_fewer_seeds_than_declared_is_never_repeated_and_is_said_to_lack_one() -> None:
    lacking = replace(row("B", "A", 0.07, seeds=4), complete=False, rates=(0.61, 0.54))
    assert lacking.unrepeated
    assert lacking.caveat == "differs in these students; a declared seed is missing"
    assert replace(lacking, p_value_holm=0.4).caveat == "a declared seed is missing"
    table = arms(seeds=5)
    table["A"] = arms(seeds=4)["A"]
    verdict = decide(table, [lacking], [])
    assert verdict.headline == (
        "structured scored higher than flat in these students "
        "(not shown for students trained anew: a declared seed is missing)"
    )
    assert "a declared seed is missing: B and A" in verdict.caveats
    # Means over the seeds that both have, not those of the table.
    assert verdict.numbers[0].startswith("strict match is 61.0% for B and 54.0% for A over seeds 0, 1, 2 and 3, a")
    assert "–" not in verdict.headline + verdict.numbers[0]


def test_seeds_are_said_of_the_comparisons_that_have_so_many() -> None:
    rows = [row("B", "A", 0.07, seeds=1), row("B", "sft", 0.1, seeds=3)]
    verdict = decide(arms(), rows, [])
    assert "one seed for B and A, which cannot show that a difference repeats in students trained anew" in (
        verdict.caveats
    )
    assert "3 seeds for B and sft" in verdict.caveats
    two = sentence(differences([row("B", "A", 0.07, seeds=1), row("B", "sft", 0.1, seeds=2)])[1])
    assert two.endswith("(not shown for students trained anew: one seed for B and A; 2 seeds for B and sft)")

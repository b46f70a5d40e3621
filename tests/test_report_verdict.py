"""Each rule of the verdict on planted tables, and what its sentence must admit."""

from __future__ import annotations

from typing import Any

import pytest

from kava.report.shown import FLAT, NO_CONTROL_BEATEN, NO_DIFFERENCE, STRUCTURED, unrepeated
from kava.report.verdict import decide

KINDS = {"A": "flat", "matched": "flat_matched", "B": "structured", "sft": None, "shuffled": "structured"}


def arms(n: int = 500, seeds: int = 3, rate: float = 0.5, names: str = "A B sft") -> dict[str, Any]:
    rows = {str(s): {"strict_match": rate, "n": n} for s in range(seeds)}
    return {name: {"aligner": KINDS[name], "strict_match_mean": rate, "seeds": rows} for name in names.split()}


def row(a: str, b: str, delta: float | None, p: float | None = 0.001) -> dict[str, Any]:
    ci = None if delta is None else [delta - 0.03, delta + 0.03]
    return {"a": a, "b": b, "delta": delta, "ci95": ci, "p_value": p, "p_value_holm": p, "seed_level": None}


BOTH_BEAT_SFT = [row("A", "sft", 0.1), row("B", "sft", 0.1)]


def test_structured_beats_flat_with_the_numbers_in_one_sentence() -> None:
    verdict = decide(arms(), [row("B", "A", 0.07, 0.012), *BOTH_BEAT_SFT], ["sft"])
    assert verdict.outcome == STRUCTURED
    assert verdict.sentence.startswith("Structured beats flat: ")
    for part in ("+7.0 points", "+4.0 to +10.0", "p = 0.012", "500 questions", "3 seeds"):
        assert part in verdict.sentence
    assert verdict.sentence.count(". ") == 0


def test_flat_beats_structured_whichever_way_the_pair_was_declared() -> None:
    for pair in (row("B", "A", -0.07), row("A", "B", 0.07)):
        verdict = decide(arms(), [pair, *BOTH_BEAT_SFT], ["sft"])
        assert verdict.outcome == FLAT
        # The winner is named first and the difference is turned with it.
        assert "for A and" in verdict.sentence
        assert "+7.0 points (95% interval +4.0 to +10.0" in verdict.sentence


@pytest.mark.parametrize("p", [0.05, 0.2, 1.0])
def test_no_difference_at_five_per_cent_or_more(p: float) -> None:
    assert decide(arms(), [row("B", "A", 0.07, p), *BOTH_BEAT_SFT], ["sft"]).outcome == NO_DIFFERENCE


def test_control_message_goes_first_even_if_structured_beats_flat() -> None:
    rows = [row("B", "A", 0.1), row("A", "sft", -0.08), row("B", "sft", 0.02, 0.4)]
    verdict = decide(arms(), rows, ["sft"])
    assert verdict.outcome == NO_CONTROL_BEATEN
    assert verdict.sentence.startswith("No KV arm beats its control: ")
    assert "among the KV arms: structured beats flat" in verdict.sentence


def test_a_kv_arm_must_beat_every_control_it_meets() -> None:
    table = arms(names="B sft shuffled")
    rows = [row("B", "sft", 0.1), row("shuffled", "B", 0.0, 0.9)]
    assert decide(table, rows, ["sft", "shuffled"]).outcome == NO_CONTROL_BEATEN


def test_shuffled_structured_arm_is_a_control_and_no_structure_pair() -> None:
    rows = [row("B", "A", 0.01, 0.8), row("A", "shuffled", 0.2)]
    assert decide(arms(names="A B shuffled"), rows, ["shuffled"]).outcome == NO_DIFFERENCE


def test_arm_that_missed_its_control_is_named() -> None:
    rows = [row("B", "A", 0.1), row("A", "sft", 0.0, 0.9), row("B", "sft", 0.1)]
    sentence = decide(arms(), rows, ["sft"]).sentence
    assert "B beats control (sft), A not shown to" in sentence


def test_structure_needs_all_its_pairs() -> None:
    table = arms(names="A matched B sft")
    mixed = [row("B", "A", 0.01, 0.7), row("B", "matched", 0.1), *BOTH_BEAT_SFT]
    assert decide(table, mixed, ["sft"]).outcome == NO_DIFFERENCE
    assert "No consistent difference" in decide(table, mixed, ["sft"]).sentence
    agreed = [row("B", "A", 0.08), row("B", "matched", 0.1), *BOTH_BEAT_SFT]
    assert decide(table, agreed, ["sft"]).outcome == STRUCTURED


def test_without_such_a_pair_the_verdict_speaks_of_what_was_compared() -> None:
    table = arms(names="A matched")
    shown = decide(table, [row("A", "matched", -0.1)], [])
    assert shown.outcome == "matched beats A"
    assert decide(table, [row("A", "matched", -0.1, 0.6)], []).outcome == NO_DIFFERENCE
    assert "no control arm was run" in shown.sentence


@pytest.mark.parametrize(("n", "rate"), [(32, 0.0), (32, 1 / 32), (1_319, 0.015)])
def test_accuracy_about_zero_allows_no_conclusion(n: int, rate: float) -> None:
    verdict = decide(arms(n=n, rate=rate, seeds=1), [row("B", "A", 0.0, 1.0), *BOTH_BEAT_SFT], ["sft"])
    assert verdict.outcome == NO_DIFFERENCE
    assert "No arm answers these questions: nothing can be concluded from accuracy" in verdict.sentence


def test_few_seeds_few_questions_and_unequal_terms_are_admitted() -> None:
    rows = [row("B", "A", 0.07), *BOTH_BEAT_SFT]
    assert "one seed: the interval does not cover seed noise" in decide(arms(seeds=1), rows, ["sft"]).sentence
    assert "only 2 seeds" in decide(arms(seeds=2), rows, ["sft"]).sentence
    assert "only 199 questions" in decide(arms(n=199), rows, ["sft"]).sentence
    assert "only" not in decide(arms(n=200), rows, ["sft"]).sentence
    assert "not equal: 1 mismatch" in decide(arms(), rows, ["sft"], ["steps differ."]).sentence


def test_comparison_that_could_not_be_made_shows_nothing() -> None:
    verdict = decide(arms(), [row("B", "A", None, None)], ["sft"])
    assert verdict.outcome == NO_DIFFERENCE
    assert "not comparable: B and A" in verdict.sentence


def many(n: int, names: str) -> dict[str, Any]:
    """`n` further KV arms beside the named ones, of kind structured but for these."""
    rows = {str(s): {"strict_match": 0.5, "n": 500} for s in range(5)}
    arm = {"strict_match_mean": 0.5, "seeds": rows}
    kinds = dict.fromkeys([f"x{i}" for i in range(n)], "linear") | {name: KINDS[name] for name in names.split()}
    return {name: {**arm, "aligner": kind} for name, kind in kinds.items()}


ALIKE = [row(f"x{i}", control, 0.0, 0.9) for i in range(6) for control in ("sft", "shuffled")]


def test_many_arms_those_that_beat_all_their_controls_are_the_headline_and_numbers_are_counts() -> None:
    rows = [row(name, control, 0.1) for name in "AB" for control in ("sft", "shuffled")]
    verdict = decide(many(6, "A B sft shuffled"), [*ALIKE, *rows], ["sft", "shuffled"])
    assert verdict.outcome == "A and B beat sft and shuffled"
    assert verdict.numbers == [
        f"of 8 KV arms compared with {control}, 2 are better (A, B) and the other 6 show no difference"
        for control in ("sft", "shuffled")
    ]
    assert "points" not in verdict.sentence


def test_many_arms_an_arm_that_misses_one_control_is_no_winner_and_a_worse_one_is_named() -> None:
    rows = [row("A", "sft", 0.1), row("A", "shuffled", 0.0, 0.9), row("sft", "B", 0.1), row("B", "shuffled", 0.0, 0.9)]
    verdict = decide(many(6, "A B sft shuffled"), [*ALIKE, *rows], ["sft", "shuffled"])
    assert verdict.outcome == NO_CONTROL_BEATEN
    assert verdict.headline == "No KV arm beats its control"
    assert verdict.numbers == [
        "of 8 KV arms compared with sft, 1 is better (A), 1 is worse (B) and the other 6 show no difference",
        "of 8 KV arms compared with shuffled, none is better and the other 8 show no difference",
    ]


def test_many_arms_winners_over_different_controls_are_named_apart() -> None:
    rows = [row("A", "sft", 0.1), row("B", "shuffled", 0.1)]
    verdict = decide(many(6, "A B sft shuffled"), [*ALIKE, *rows], ["sft", "shuffled"])
    assert verdict.outcome == "A beats sft; B beats shuffled"


def test_many_arms_what_kv_arms_show_among_themselves_follows_after_the_controls() -> None:
    rows = [*BOTH_BEAT_SFT, row("B", "A", 0.1), row("x0", "x1", 0.1), row("x2", "x1", 0.0, 0.9)]
    verdict = decide(many(6, "A B sft shuffled"), [*ALIKE, *rows], ["sft", "shuffled"])
    assert verdict.outcome == "A and B beat sft"
    assert verdict.numbers[-1] == (
        "among the KV arms, structured beats flat, x0 beats x1 and no difference shown in 1 other comparison"
    )


def test_many_arms_that_all_beat_their_controls_leave_the_headline_to_structure() -> None:
    rows = [row(name, "sft", 0.1) for name in ("A", "B", *(f"x{i}" for i in range(6)))]
    assert decide(many(6, "A B sft"), [*rows, row("B", "A", 0.1)], ["sft"]).outcome == STRUCTURED
    assert decide(many(6, "A B sft"), rows, ["sft"]).outcome.endswith("x4 and x5 beat sft")


def test_many_arms_without_controls_name_only_the_differences() -> None:
    rows = [row(f"x{i}", f"x{i + 1}", 0.0, 0.9) for i in range(7)]
    assert decide(many(9, ""), rows, []).outcome == NO_DIFFERENCE
    verdict = decide(many(9, ""), [*rows, row("x0", "x8", 0.1)], [])
    assert (verdict.outcome, verdict.numbers) == ("x0 beats x8", ["no difference shown in 7 other comparisons"])


def test_difference_that_does_not_repeat_over_seeds_is_a_caveat_and_still_shown() -> None:
    doubtful = {**row("B", "A", 0.07), "seed_level": {"mean": 0.07, "se": 0.06, "p_value": 0.3}}
    verdict = decide(arms(), [doubtful, *BOTH_BEAT_SFT], ["sft"])
    assert verdict.outcome == STRUCTURED
    assert "not shown to repeat over seeds: B and A" in verdict.caveats
    assert unrepeated(doubtful)
    assert not unrepeated({**doubtful, "seed_level": {"mean": 0.07, "se": 0.01, "p_value": 0.05}})
    assert not unrepeated({**doubtful, "p_value_holm": 0.2})
    assert not unrepeated({**doubtful, "seed_level": None})
    rows = [{**doubtful, "a": name, "b": "sft"} for name in "AB"]
    verdict = decide(many(6, "A B sft shuffled"), [*ALIKE, *rows], ["sft", "shuffled"])
    assert "not shown to repeat over seeds: 2 of 2 differences" in verdict.caveats

"""Accuracy by kind of question: which bin a question falls into, and that every question counts once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from report_fixtures import finished_runs, numbers_of_two_seeds, report_of_two_seeds  # noqa: F401
from report_values import run_of

from kava.report.breakdown import Bin, break_down, words_of
from kava.report.build import Report
from kava.report.charts.scores import breakdown_charts
from kava.report.clean import jsonable
from kava.report.evaluated import Answer
from kava.report.finished import FinishedRun, Runs
from kava.report.results import Score
from kava.report.statistics.intervals import wilson
from kava.tasks import task_of
from kava.tasks.gsm8k import steps_of
from kava.tasks.metric import STRICT_MATCH

ONE = {"a": ["1"]}


def run(questions: list[str], golds: list[str], marks: str) -> FinishedRun:
    each = enumerate(zip(questions, golds, marks, strict=True))
    return run_of(
        {str(doc): Answer(question, gold, "", {"strict_match": int(mark)}) for doc, (question, gold, mark) in each}
    )


def broken_down(runs: Runs, declared: dict[str, list[str]] = ONE) -> dict[str, Any]:
    """As it stands in the JSON."""
    bins: dict[str, Any] = jsonable(break_down(runs, declared, STRICT_MATCH, task_of("gsm8k").breakdowns))
    return bins


@pytest.mark.parametrize(
    ("gold", "steps"),
    [
        ("He has 2 + 3 = <<2+3=5>>5.\n#### 5", 1),
        ("<<2+3=5>>5 and <<5*2=10>>10 in one line.\n#### 10", 2),
        ("First he has two.\nThen, three more.\n\n#### 5", 2),
        ("#### 5", 0),
        ("a << b and << c\n#### 5", 1),
    ],
)
def test_steps_are_equations_and_without_any_lines(gold: str, steps: int) -> None:
    assert steps_of(gold) == steps


def test_words_are_parted_by_whitespace() -> None:
    assert words_of(" How  many\napples? ") == 3


def test_terciles_are_even_and_ties_are_never_parted() -> None:
    questions = ["w " * n for n in range(1, 10)]
    table = broken_down({"a": {"1": run(questions, ["x"] * 9, "111110000")}})
    assert [(b["name"], b["n"]) for b in table["length"]] == [("1–3 words", 3), ("4–6 words", 3), ("7–9 words", 3)]
    assert [b["arms"]["a"]["rate"] for b in table["length"]] == pytest.approx([1, 2 / 3, 0])
    alike = broken_down({"a": {"1": run(["w w"] * 9, ["x"] * 9, "111110000")}})
    assert [(b["name"], b["n"]) for b in alike["length"]] == [("2 words", 9)]


def test_long_solutions_share_a_bin() -> None:
    golds = ["<<1=1>>" * n for n in (1, 2, 2, 6, 7, 9)]
    table = broken_down({"a": {"1": run(["w"] * 6, golds, "101010")}})
    assert [(b["name"], b["n"]) for b in table["steps"]] == [("1 step", 1), ("2 steps", 2), ("6 or more steps", 3)]


def test_bins_average_over_seeds_and_add_up_to_the_accuracy_of_the_arm(numbers: dict[str, Any]) -> None:
    for bins in numbers["breakdown"].values():
        assert sum(row["n"] for row in bins) == 500
        for arm, row in numbers["arms"].items():
            total = sum(bin_["n"] * bin_["arms"][arm]["rate"] for bin_ in bins) / 500
            assert total == pytest.approx(row["strict_match_mean"])
            one = bins[0]["arms"][arm]
            assert one["ci95"] == pytest.approx(wilson(one["rate"], bins[0]["n"]))


def test_only_questions_of_every_run_count_and_an_arm_without_runs_has_no_number() -> None:
    three, two = run(["w"] * 3, ["x"] * 3, "110"), run(["w"] * 2, ["x"] * 2, "10")
    both = {"a": ["1", "2"], "b": ["1", "2"]}
    table = broken_down({"a": {"1": three, "2": two}, "b": {}}, both)
    (row,) = table["length"]
    assert row["n"] == 2
    assert row["arms"] == {
        "a": {"rate": 0.75, "ci95": pytest.approx(wilson(0.75, 2))},
        "b": {"rate": None, "ci95": None},
    }
    assert broken_down({"a": {}}, both) == {}
    assert broken_down({"a": {"1": three, "2": run([], [], "")}}, both) == {}


def test_a_scale_of_many_arms_that_are_all_at_zero_has_a_height(report: Report) -> None:
    names = [f"x{i}" for i in range(9)]
    arm = next(iter(report.arms.values()))
    nothing = Score(0.0, (0.0, 0.3))
    bins = [Bin("1 step", 9, dict.fromkeys(names, nothing))]
    arms = dict.fromkeys(names, replace(arm, scores={"strict_match": nothing}))
    (chart,) = breakdown_charts(replace(report, breakdown={"steps": bins}, arms=arms, controls=[]))
    points = chart.spec["layer"][0]["encoding"]["y"]
    assert points["scale"]["domain"] == [0, pytest.approx(0.052)]

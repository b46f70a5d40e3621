"""The questions that the page shows: those that differ first, every arm's answer, never more than there is room for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from report_files import edit_lines
from report_fixtures import numbers_of_two_seeds, report_of_two_seeds, runs_of_one_seed  # noqa: F401
from report_values import MARKS, marked, run_of

from kava.report.build import build_report
from kava.report.clean import jsonable
from kava.report.finished import FinishedRun, Runs
from kava.report.inputs import ReportInputs
from kava.report.page.render import render_html
from kava.report.samples import FIRST, TEXT_BUDGET, embedded, pick_samples


def run(answers: list[str], marks: str) -> FinishedRun:
    return run_of(marked(marks, answers))


def picked(runs: Runs) -> dict[str, Any]:
    """As it stands in the JSON."""
    samples: dict[str, Any] = jsonable(pick_samples(runs, MARKS))
    return samples


def marks(question: dict[str, Any], seed: str) -> tuple[int, ...]:
    return tuple(answer[1] for answer in question["answers"][seed])


def test_questions_on_which_arms_disagree_come_first_each_pattern_in_turn(numbers: dict[str, Any]) -> None:
    questions = numbers["samples"]["questions"]
    assert len(questions) == numbers["samples"]["of"] == 500
    disagreements = numbers["samples"]["disagreements"]
    assert all(len(set(marks(question, "42"))) == 2 for question in questions[:disagreements])
    assert not any(len(set(marks(question, "42"))) == 2 for question in questions[disagreements:])
    assert len({marks(question, "42") for question in questions[:FIRST]}) > 2


def test_every_seed_is_shown_where_there_is_room_and_its_marks_are_its_own(numbers: dict[str, Any]) -> None:
    samples = numbers["samples"]
    assert samples["seeds"] == samples["all_seeds"] == ["42", "43"]
    for seed in ("42", "43"):
        for index, arm in enumerate(samples["arms"]):
            right = sum(marks(question, seed)[index] for question in samples["questions"])
            assert right / 500 == pytest.approx(numbers["arms"][arm]["seeds"][seed]["strict_match"])


def test_where_there_is_no_room_for_all_seeds_the_first_is_shown_whole() -> None:
    answer = ["because " * 100] * 300
    arms = {arm: {seed: run(answer, "10" * 150) for seed in "123"} for arm in "ab"}
    samples = picked(arms)
    assert (samples["seeds"], samples["all_seeds"]) == (["1"], ["1", "2", "3"])
    assert len(samples["questions"]) == 300
    assert all(answer[3] == 0 for question in samples["questions"] for answer in question["answers"]["1"])


def test_babbling_arms_are_cut_and_counted_and_the_first_questions_still_shown() -> None:
    arms = {arm: {"1": run(["</script>" * 12_000] * 40, "01" * 20)} for arm in "abcd"}
    samples = picked(arms)
    assert FIRST <= len(samples["questions"]) < samples["of"] == 40
    assert len(embedded(samples).encode()) < TEXT_BUDGET + 1_000
    for text, _, _, left_out in (answer for q in samples["questions"] for answer in q["answers"]["1"]):
        assert len(text) + left_out == 9 * 12_000
        assert left_out > 0


def test_one_long_answer_among_short_ones_is_whole() -> None:
    long = "digits " * 14_000
    samples = picked({"a": {"1": run([long, "7"], "01")}, "b": {"1": run(["7", "7"], "11")}})
    assert [answer[0] for q in samples["questions"] for answer in q["answers"]["1"]].count(long) == 1


def test_a_seed_under_which_an_arm_answered_other_questions_is_not_shown() -> None:
    whole, part = run(["7"] * 4, "0101"), run(["7"] * 3, "010")
    samples = picked({"a": {"1": whole, "2": whole}, "b": {"1": whole, "2": part}})
    assert samples["all_seeds"] == ["1"]
    assert samples["of"] == 4


def test_arms_without_a_common_seed_show_no_question() -> None:
    some = run(["7"], "1")
    assert picked({"a": {"1": some}, "b": {"2": some}})["questions"] == []
    assert picked({"a": {"1": some}, "b": {}})["seeds"] == []


def test_embedded_json_ends_no_script_and_says_what_was_written() -> None:
    said = "</script><SCRIPT><!-- \u2028 << >> \"' & \\ \U0001f600"
    text = embedded({"said": said})
    assert json.loads(text) == {"said": said}
    assert not any(tag in text.lower() for tag in ("</", "<script", "<!--"))


def test_answers_stand_in_the_page_once_but_for_the_first_dozen(runs: ReportInputs) -> None:
    path = runs.runs["flat"]["42"].evaluation / "samples.jsonl"
    edit_lines(path, lambda rows: [{**row, "answer": f"the answer number {row['doc_id']}."} for row in rows])
    html = render_html(build_report(runs))
    counts = [html.count(f"the answer number {doc}.") for doc in range(60)]
    assert sorted(counts) == [1] * (60 - FIRST) + [2] * FIRST

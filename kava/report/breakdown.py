"""Scores by length of the question and by what the task counts of its answer: where an arm's scores come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kava.report.alignment import mean
from kava.report.clean import Row, grouped
from kava.report.evaluated import Answer
from kava.report.finished import Runs
from kava.report.results import Score
from kava.report.statistics.intervals import interval_of
from kava.tasks.base import Breakdown
from kava.tasks.metric import Metric

# Larger numbers are rare, so they share a bin.
MOST = 6


@dataclass(frozen=True)
class Bin(Row):
    """Questions of one kind: how many, and arm → score."""

    name: str
    n: int
    arms: Mapping[str, Score]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        arms = {arm: {"rate": score.mean, "ci95": score.ci95} for arm, score in self.arms.items()}
        return {"name": self.name, "n": self.n, "arms": arms}


def words_of(question: str) -> int:
    """Words, as whitespace parts them."""
    return len(question.split())


def _by_length(questions: Mapping[str, Answer]) -> list[tuple[str, list[str]]]:
    """Questions in three bins by length, as even as ties allow; one without a question is left out."""
    words = {doc: words_of(answer.question) for doc, answer in questions.items()}
    counts = list(words.values())
    short, middle = (int(q) for q in np.quantile(counts, [1 / 3, 2 / 3], method="inverted_cdf"))
    edges = [(min(counts), short), (short + 1, middle), (middle + 1, max(counts))]
    named = [(f"{low}–{high} words" if low < high else f"{low} words", low, high) for low, high in edges]
    bins = [(name, [doc for doc, n in words.items() if low <= n <= high]) for name, low, high in named]
    return [(name, docs) for name, docs in bins if docs]


def _by_number(questions: Mapping[str, Answer], counted: Breakdown) -> list[tuple[str, list[str]]]:
    """A bin per number, the largest together."""
    numbers = {doc: counted.of_gold(answer.gold) for doc, answer in questions.items()}
    bins = grouped((min(n, MOST), doc) for doc, n in numbers.items())

    def name(n: int) -> str:
        more = " or more" if max(numbers.values()) > MOST and n == MOST else ""
        return f"{n}{more} {counted.unit}{'s' if n != 1 else ''}"

    return [(name(n), bins[n]) for n in sorted(bins)]


def break_down(
    runs: Runs, declared: Mapping[str, Sequence[str]], metric: Metric, counted: Sequence[Breakdown]
) -> dict[str, list[Bin]]:
    """Scores by kind of question.

    Parameters
    ----------
    runs : mapping
        Arm → seed → run.
    declared : mapping
        Arm → its declared seeds; an arm without a run of each has no score.
    metric : Metric
        The primary one.
    counted : sequence of Breakdown
        The task's own, beside `length`: terciles of the number of words of the question.

    Returns
    -------
    dict
        Kind → bins. An arm's score is the mean over its seeds, and its interval has the bin's questions as n. Only
        questions that every run answered count. Empty where there are none.
    """
    evaluations = [run.evaluation for seeds in runs.values() for run in seeds.values()]
    asked = evaluations[0].answers if evaluations else {}
    shared = {doc: answer for doc, answer in asked.items() if all(doc in each.answers for each in evaluations)}
    if not shared:
        return {}
    of_arms = {arm: [run.evaluation.scores(metric) for run in seeds.values()] for arm, seeds in runs.items()}

    def score(arm: str, docs: list[str]) -> Score:
        rate = mean([mean([scores[doc] for doc in docs]) for scores in of_arms[arm]])
        if set(runs[arm]) != set(declared[arm]) or rate is None:
            return Score(None, None)
        per_question = [sum(scores[doc] for scores in of_arms[arm]) / len(of_arms[arm]) for doc in docs]
        return Score(rate, interval_of(metric, rate, len(docs), per_question))

    bins = {"length": _by_length(shared)} | {each.name: _by_number(shared, each) for each in counted}
    return {
        kind: [Bin(name, len(docs), {arm: score(arm, docs) for arm in runs}) for name, docs in of_kind]
        for kind, of_kind in bins.items()
    }

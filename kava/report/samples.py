"""Questions with every arm's answer side by side, as many as the page has room for, those that differ first."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kava.report.clean import Row, grouped
from kava.report.evaluated import Answer
from kava.report.finished import Runs
from kava.tasks.metric import Metric

# Bytes of samples in the page, which with the chart library's 0.9 MB and the curves stays under 3 MB.
TEXT_BUDGET = 1_200_000
# The first questions are shown even where every arm babbles; all texts are cut so that these fit half the budget.
FIRST = 12
DIGITS = 3
# What would end or begin a script inside a script element; a backslash sequence says the same in JSON.
_TAG = re.compile(r"<(?=[/!s])", re.IGNORECASE)


def embedded(value: Any) -> str:
    """JSON that can stand inside a script element, whatever a model wrote."""
    return _TAG.sub(r"\\u003c", json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _size(value: Any) -> int:
    return len(embedded(value).encode())


def _furthest_apart(patterns: Mapping[str, tuple[float, ...]]) -> list[str]:
    return sorted(patterns, key=lambda doc: min(patterns[doc]) - max(patterns[doc]))


def _choose(patterns: Mapping[str, tuple[float, ...]]) -> list[str]:
    """All questions, disagreements first, each pattern of right and wrong in turn."""
    groups = grouped((pattern, doc) for doc, pattern in patterns.items())
    queues = sorted(groups.items(), key=lambda item: (len(set(item[0])) == 1, -len(item[1])))
    disagreeing = [docs for pattern, docs in queues if len(set(pattern)) > 1]
    agreeing = [docs for pattern, docs in queues if len(set(pattern)) == 1]
    chosen: list[str] = []
    for tier in (disagreeing, agreeing):
        depth = max((len(docs) for docs in tier), default=0)
        chosen += [docs[i] for i in range(depth) for docs in tier if i < len(docs)]
    return chosen


def _longest_allowed(lengths: Sequence[int], budget: int) -> int:
    """The cut at which texts of these lengths fit the budget; short ones leave their share to long ones."""
    left = budget
    for index, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - index)
        if length > share:
            return share
        left -= length
    return budget


def _cut(text: str, limit: int) -> str:
    """The beginning of a text that takes at most `limit` bytes in the page."""
    while (size := _size(text)) > limit:
        text = text[: len(text) * limit // size]
    return text


@dataclass(frozen=True)
class Shown:
    """What an arm answered, and metric → number, where it is known; the text was cut by `left_out` characters."""

    text: str
    scores: Mapping[str, float | None]
    left_out: int

    def to_list(self) -> list[Any]:
        """As it stands in the JSON: text, a number per metric, characters left out."""
        return [self.text, *self.scores.values(), self.left_out]


@dataclass(frozen=True)
class Question(Row):
    """A question, and seed → an answer per arm."""

    doc_id: str
    question: str
    gold: str
    answers: Mapping[str, Sequence[Shown]]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return vars(self) | {"answers": {seed: [each.to_list() for each in row] for seed, row in self.answers.items()}}


@dataclass(frozen=True)
class Samples(Row):
    """The questions to show.

    Attributes
    ----------
    seeds, all_seeds
        Seeds that are shown, and those that could be: under which every arm answered the same questions.
    disagreements
        On how many questions under the first seed some arms are right and some wrong.
    of
        Number of questions that the arms share.
    metrics
        Names of the metrics whose numbers an answer has: those that are known of any.
    """

    arms: Sequence[str]
    seeds: Sequence[str] = ()
    all_seeds: Sequence[str] = ()
    disagreements: int = 0
    of: int = 0
    questions: Sequence[Question] = ()
    metrics: Sequence[str] = ()


def pick_samples(runs: Runs, metrics: Sequence[Metric]) -> Samples:
    """The questions to show: those on which the arms disagree first, or of numbers, are the furthest apart.

    Parameters
    ----------
    runs : mapping
        Arm → seed → run. Of the seeds under which every arm answered the same questions, all are shown if there is
        room for all, else the first.
    metrics : sequence of Metric
        The primary one first.
    """
    arms = list(runs)
    seeds = [s for s in next(iter(runs.values()), {}) if all(s in runs[a] for a in arms)]
    if not seeds:
        return Samples(arms)
    answers = {seed: [runs[arm][seed].evaluation.answers for arm in arms] for seed in seeds}
    first = answers[seeds[0]]
    common = [doc for doc in first[0] if all(doc in of_arm for of_arm in first)]
    seeds = [seed for seed in seeds if all(doc in of_arm for of_arm in answers[seed] for doc in common)]
    patterns = {doc: tuple(of_arm[doc].scores[metrics[0].name] for of_arm in first) for doc in common}
    metrics = [m for m in metrics if any(m.name in answer.scores for of_arm in first for answer in of_arm.values())]
    chosen = _choose(patterns) if metrics[0].proportion else _furthest_apart(patterns)

    def lengths(shown: Sequence[str]) -> list[int]:
        asked = [_size(text) for doc in chosen[:FIRST] for text in (first[0][doc].question, first[0][doc].gold)]
        return asked + [_size(a[doc].answer) for doc in chosen[:FIRST] for seed in shown for a in answers[seed]]

    def rows(shown: Sequence[str]) -> list[Question]:
        limit = _longest_allowed(lengths(shown), TEXT_BUDGET // 2)
        return [_row(doc, {seed: answers[seed] for seed in shown}, limit, metrics) for doc in chosen]

    shown = seeds
    questions = rows(shown)
    if len(seeds) > 1 and _size([question.to_dict() for question in questions]) > TEXT_BUDGET:
        shown = seeds[:1]
        questions = rows(shown)
    disagreements = sum(len(set(pattern)) > 1 for pattern in patterns.values()) if metrics[0].proportion else 0
    names = [metric.name for metric in metrics]
    return Samples(arms, shown, seeds, disagreements, len(common), _fitting(questions), names)


def _row(
    doc: str, answers: Mapping[str, Sequence[Mapping[str, Answer]]], limit: int, metrics: Sequence[Metric]
) -> Question:
    def shown(answer: Answer) -> Shown:
        text = _cut(answer.answer, limit)
        numbers = {metric.name: answer.scores.get(metric.name) for metric in metrics}
        # As many digits of further numbers as are shown: they would take the room of answers.
        further = {name: value and round(value, DIGITS) for name, value in list(numbers.items())[1:]}
        return Shown(text, numbers | further, len(answer.answer) - len(text))

    asked = next(iter(answers.values()))[0][doc]
    of_seeds = {seed: [shown(of_arm[doc]) for of_arm in row] for seed, row in answers.items()}
    return Question(doc, _cut(asked.question, limit), _cut(asked.gold, limit), of_seeds)


def _fitting(questions: Sequence[Question]) -> list[Question]:
    """The first of them that fit the budget together."""
    left = TEXT_BUDGET
    fitting = []
    for question in questions:
        left -= _size(question.to_dict()) + 1
        if left < 0:
            break
        fitting.append(question)
    return fitting

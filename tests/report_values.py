"""Runs as the report reads them, made without files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kava.report.evaluated import Answer, Evaluation
from kava.report.finished import FinishedRun, Training
from kava.tasks.metric import FLEXIBLE_EXTRACT, STRICT_MATCH

MARKS = (STRICT_MATCH, FLEXIBLE_EXTRACT)


def marked(
    marks: Sequence[int] | str, answers: Sequence[str] | str = "", question: str = "How many?", gold: str = "#### 3"
) -> dict[str, Answer]:
    """doc_id → an answer that is right or wrong by both metrics."""
    texts = [answers] * len(marks) if isinstance(answers, str) else answers
    return {
        str(doc): Answer(question, gold, text, {metric.name: int(mark) for metric in MARKS})
        for doc, (mark, text) in enumerate(zip(marks, texts, strict=True))
    }


def evaluated(answers: Mapping[str, Answer]) -> Evaluation:
    return Evaluation(answers, len(answers), {}, len(answers), None, {})


def run_of(answers: Mapping[str, Answer]) -> FinishedRun:
    """A run of which nothing but its answers is known."""
    return FinishedRun(None, Training(), evaluated(answers))

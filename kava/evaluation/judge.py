"""Judge one model by questions: its answers and their marks, and what it makes of the right answers."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from kava.config.schema import Evaluation
from kava.errors import UserError
from kava.evaluation.agreement import Likeliest, agreement
from kava.evaluation.harness import harness_results, samples
from kava.evaluation.likelihood import AnswerScore, score_answers
from kava.evaluation.questions import Questions
from kava.tasks.base import Task
from kava.tasks.metric import ANSWER_NLL, TEACHER_AGREEMENT, Metric

Line = dict[str, Any]


class Judgement(NamedTuple):
    """A line for each question, and what its right answer was to the model."""

    lines: list[Line]
    scores: list[AnswerScore]


def judge(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    task: Task,
    task_folder: Path,
    settings: Evaluation,
    teacher: Likeliest | None,
) -> Judgement:
    """Judge a model.

    Parameters
    ----------
    model, tokenizer
        A causal language model and its tokenizer.
    questions
        As the model reads them.
    task, task_folder
        Of the questions; where answers are generated, the harness's task that asks them.
    settings
        How many questions at once, and whether answers are generated.
    teacher
        What the teacher finds likeliest; None for the teacher itself, which agrees with itself.

    Raises
    ------
    UserError
        A likelihood is not finite.
    """
    scores = score_answers(model, questions.input_ids, questions.segments, settings.batch_size)
    if wrong := [number for number, score in enumerate(scores) if not isfinite(score.nll)]:
        raise UserError(
            f"the likelihood of the answer to {questions.split} row {wrong[0]} is {scores[wrong[0]].nll} ({len(wrong)} "
            f"of {len(scores)} are no numbers): logits of {model.name_or_path} overflow, or are NaN; lower its "
            "learning rate, or load it in another dtype"
        )
    if task.harness and settings.generate:
        lines = samples(harness_results(model, tokenizer, task_folder, settings), task.harness)
    else:
        lines = [
            {"doc_id": number, "question": row["question"], "gold": row["answer"], "answer": ""}
            for number, row in enumerate(questions.rows)
        ]
    agreements: Sequence[float | None] = [1.0] * len(scores)
    if teacher is not None:
        agreements = [agreement(*pair) for pair in zip(scores, teacher[questions.split], strict=True)]
    for line, score, share in zip(lines, scores, agreements, strict=True):
        line |= {ANSWER_NLL.name: score.nll, TEACHER_AGREEMENT.name: share}
    return Judgement(lines, scores)


def means(lines: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> dict[str, float | None]:
    """Metric → mean over the questions of which it is known; None where it is known of none."""
    known = {metric.name: [line[metric.name] for line in lines if line[metric.name] is not None] for metric in metrics}
    return {name: fmean(values) if values else None for name, values in known.items()}

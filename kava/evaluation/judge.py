"""Judge one model by questions: its answers and their marks, and what it makes of the right answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import Any, NamedTuple

from kava.config.schema import Evaluation
from kava.errors import UserError
from kava.evaluation.agreement import Likeliest, agreement
from kava.evaluation.harness import harness_results, samples
from kava.evaluation.likelihood import AnswerScore, score_answers
from kava.evaluation.questions import Questions
from kava.models.placement import Placed
from kava.tasks import scored
from kava.tasks.base import Task
from kava.tasks.metric import ANSWER_NLL, TEACHER_AGREEMENT, Metric

Line = dict[str, Any]


class Judgement(NamedTuple):
    """A line for each question, and what its right answer was to the model."""

    lines: list[Line]
    scores: list[AnswerScore]


@dataclass(frozen=True)
class Judge:
    """How models are judged.

    Attributes
    ----------
    task
        Of the questions.
    settings
        How many questions at once, and whether answers are generated.
    teacher
        What the teacher finds likeliest; None for the teacher itself, which agrees with itself.
    """

    task: Task
    settings: Evaluation
    teacher: Likeliest | None

    @property
    def generates(self) -> bool:
        """Whether answers are written and marked."""
        return self.task.harness is not None and self.settings.generate

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What each line has a number of."""
        return scored(self.task, self.settings.generate)

    def judge(self, placed: Placed, tokenizer: Any, questions: Questions) -> Judgement:
        """Judge a causal language model by questions, given as it reads them; one that is streamed writes nothing.

        Raises
        ------
        UserError
            A likelihood is not finite.
        """
        model = placed.model
        scores = score_answers(placed, questions.input_ids, questions.segments, self.settings.batch_size)
        if wrong := [number for number, score in enumerate(scores) if not isfinite(score.nll)]:
            raise UserError(
                f"the likelihood of the answer to {questions.split} row {wrong[0]} is {scores[wrong[0]].nll} "
                f"({len(wrong)} of {len(scores)} are no numbers): logits of {model.name_or_path} overflow, or are NaN; "
                "lower its learning rate, or load it in another dtype"
            )
        lines = self._lines(model, tokenizer, questions)
        agreements: Sequence[float | None] = [1.0] * len(scores)
        if self.teacher is not None:
            agreements = [agreement(*pair) for pair in zip(scores, self.teacher[questions.split], strict=True)]
        for line, score, share in zip(lines, scores, agreements, strict=True):
            line |= {ANSWER_NLL.name: score.nll, TEACHER_AGREEMENT.name: share}
        return Judgement(lines, scores)

    def _lines(self, model: Any, tokenizer: Any, questions: Questions) -> list[Line]:
        if self.task.harness and self.generates:
            return samples(harness_results(model, tokenizer, questions.folder, self.settings), self.task.harness)
        return [
            {"doc_id": number, "question": row["question"], "gold": row["answer"], "answer": ""}
            for number, row in enumerate(questions.rows)
        ]


def means(lines: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> dict[str, float | None]:
    """Metric → mean over the questions of which it is known; None where it is known of none."""
    known = {metric.name: [line[metric.name] for line in lines if line[metric.name] is not None] for metric in metrics}
    return {name: fmean(values) if values else None for name, values in known.items()}


def in_words(found: Mapping[str, float | None], metrics: Sequence[Metric]) -> str:
    """Means for a line of the log."""
    return ", ".join(f"{m.label} {value:.4f}" for m in metrics if (value := found[m.name]) is not None)

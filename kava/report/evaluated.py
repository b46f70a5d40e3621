"""What evaluations left: of a model, its answers with their numbers, and its scores at steps of its training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kava.errors import UserError
from kava.report.clean import Row, clean_text
from kava.report.reading import NO_COST, Cost, read_cost, read_json, read_lines
from kava.tasks.metric import Metric

FIELDS = ("doc_id", "question", "gold", "answer")


@dataclass(frozen=True)
class Answer:
    """A line of `samples.jsonl`; `scores` is metric → number, of the metrics that are known of it."""

    question: str
    gold: str
    answer: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class AtStep(Row):
    """A model on the `n` validation questions when it had been trained for `seconds`; `means` is metric → mean."""

    means: Mapping[str, float | None]
    n: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {**self.means, "n": self.n, "seconds": self.seconds}


@dataclass(frozen=True)
class Evaluation:
    """One evaluated model.

    Attributes
    ----------
    answers
        doc_id (as a string) → its answer.
    lines
        Number of lines read, which exceeds `len(answers)` if a doc_id occurs twice.
    means
        Metric → mean, as the manifest records it; None where that is not known.
    n, questions_sha256, settings
        Number of questions, their digest, and how they were asked; as recorded.
    at_steps
        Step → the scores of the weights of that step; of a model that was not trained here, of step 0 alone.
    """

    answers: Mapping[str, Answer]
    lines: int
    means: Mapping[str, float | None]
    n: int
    questions_sha256: str | None
    settings: Mapping[str, Any]
    cost: Cost = NO_COST
    at_steps: Mapping[int, AtStep] = field(default_factory=dict)

    def scores(self, metric: Metric) -> dict[str, float]:
        """doc_id → number of the answer by `metric`, of the questions of which it is known."""
        name = metric.name
        return {doc: answer.scores[name] for doc, answer in self.answers.items() if name in answer.scores}

    def knows(self, metric: Metric) -> bool:
        """Whether the mean and the number of every question are known."""
        return self.means.get(metric.name) is not None and len(self.scores(metric)) == len(self.answers)


def read_evaluation(directory: Path, metrics: Sequence[Metric], lost: list[str]) -> Evaluation:
    """Read `manifest.json`, `cost.json` and `samples.jsonl` of an evaluation.

    The primary metric, which comes first, and marks have to be there, but for a teacher that wrote no answers
    (`evaluation.teacher: likelihood`); another number may be null, or missing in the files of an older version.

    Raises
    ------
    UserError
        If a line lacks its question, gold or answer or its doc_id, a mark is not 0 or 1, or another number not finite.
    """
    path = directory / "samples.jsonl"
    manifest, cost = read_json(directory / "manifest.json", lost), read_cost(directory, lost)
    settings = manifest["spec"]["key"]["evaluation"]
    needed = [metric.name for metric in metrics if metric is metrics[0] or metric.proportion]
    if not settings.get("generate", True):
        needed = [metric.name for metric in metrics if not metric.proportion][:1]
    answers: dict[str, Answer] = {}
    lines = 0
    for line in read_lines(path):
        lines += 1
        if missing := [key for key in FIELDS if key not in line]:
            raise UserError(f"{path}, line {lines}, has no {' and no '.join(missing)}; rerun the evaluation")
        known = [m for m in metrics if m.name in needed or line.get(m.name) is not None]
        for metric in known:
            if not metric.allows(line.get(metric.name)):
                raise UserError(
                    f"{path}, doc_id {line.get('doc_id')}: {metric.name} is {line.get(metric.name)!r}, it must "
                    f"be {'0 or 1' if metric.proportion else 'a finite number'}; rerun the evaluation"
                )
        question, gold, answer = (clean_text(line[key]) for key in ("question", "gold", "answer"))
        scores = {m.name: int(line[m.name]) if m.proportion else float(line[m.name]) for m in known}
        answers[str(line["doc_id"])] = Answer(question, gold, answer, scores)
    at_steps = {int(step): _at_step(scores, metrics) for step, scores in (manifest.get("at_steps") or {}).items()}
    return Evaluation(
        answers,
        lines,
        {
            metric.name: manifest[metric.name] if metric.name in needed else manifest.get(metric.name)
            for metric in metrics
        },
        manifest["n"],
        manifest.get("questions_sha256"),
        settings,
        cost,
        dict(sorted(at_steps.items())),
    )


def _at_step(recorded: Mapping[str, Any], metrics: Sequence[Metric]) -> AtStep:
    means = {metric.name: recorded.get(metric.name) for metric in metrics}
    return AtStep(means, recorded["n"], recorded["seconds"])

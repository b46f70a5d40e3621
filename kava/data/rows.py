"""The rows that a run reads: loaded and checked by their task, and what a user should know of their repetitions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kava.config.data import DataSettings
from kava.data.overlap import normalised
from kava.tasks import task_of
from kava.tasks.base import Row, Rows
from kava.text import some


def load_rows(data: DataSettings) -> Rows:
    """Rows of a run, with warnings of questions that are there twice; raises what `Task.load` of their task does."""
    rows = task_of(data.kind).load(data)
    return replace(rows, warnings=rows.warnings + _repeated(rows.splits))


def _repeated(splits: Mapping[str, Sequence[Row]]) -> list[str]:
    """Sentences on questions of validation that are trained on, and on those that the test asks more than once."""
    questions = {split: [normalised(row["question"]) for row in rows] for split, rows in splits.items()}
    trained, different = set(questions["train"]), set(questions["test"])
    again = [row for row, question in enumerate(questions["validation"]) if question in trained]
    warnings = []
    if again:
        warnings.append(
            f"{_of(len(again), len(questions['validation']), 'validation questions')} in the training rows too "
            f"(validation row {some(again)}), so what is measured on validation is better than on new questions; "
            "drop the repetitions."
        )
    if repetitions := len(questions["test"]) - len(different):
        warnings.append(
            f"{_of(repetitions, len(questions['test']), 'test questions')} in the test split before, which has "
            f"{len(different)} different ones; drop the repetitions."
        )
    return warnings


def _of(count: int, of: int, what: str) -> str:
    return f"{count} of {of} {what} {'is' if count == 1 else 'are'}"

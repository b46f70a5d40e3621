"""Tasks: where rows come from, how an example is divided, and by which metrics answers are judged.

A new one is a file with a class of `Task`, a line in `TASKS`, and its settings in `kava/config/data.py`.
"""

from kava.tasks.base import Task
from kava.tasks.demo import Demo
from kava.tasks.gsm8k import Gsm8k
from kava.tasks.metric import ANSWER_NLL, TEACHER_AGREEMENT, Metric
from kava.tasks.text import Text

TASKS: tuple[type[Task], ...] = (Demo, Gsm8k, Text)


def task_of(kind: str) -> Task:
    """The task of a `data.kind`."""
    return next(task() for task in TASKS if task.kind == kind)


def scored(task: Task, generate: bool) -> tuple[Metric, ...]:
    """The numbers that a question has in `samples.jsonl`, and a model in its manifest; the primary one first.

    Parameters
    ----------
    task
        Of the data.
    generate
        Whether answers are written and marked (`evaluation.generate`); of matter for a task with a harness.
    """
    own = task.metrics if generate or task.harness is None else ()
    return (*own, *(metric for metric in (ANSWER_NLL, TEACHER_AGREEMENT) if metric not in own))

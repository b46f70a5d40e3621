"""Tasks: where rows come from, how an example is divided, and by which metrics answers are judged.

A new one is a file with a class of `Task`, a line in `TASKS`, and its settings in `kava/config/data.py`.
"""

from kava.tasks.base import Task
from kava.tasks.demo import Demo
from kava.tasks.gsm8k import Gsm8k
from kava.tasks.text import Text

TASKS: tuple[type[Task], ...] = (Demo, Gsm8k, Text)


def task_of(kind: str) -> Task:
    """The task of a `data.kind`."""
    return next(task() for task in TASKS if task.kind == kind)

"""What a task is: its rows, where a row's answer begins, how answers are judged, and what a plan may assume."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from kava.tasks.metric import Metric

# `question` and `answer`.
Row = dict[str, str]


@dataclass(frozen=True)
class Rows:
    """Rows of a run.

    Attributes
    ----------
    splits
        `train`, `validation` and `test`, each rows of `question` and `answer`.
    notes
        Sentences on what was taken from where.
    warnings
        Sentences on what makes the results less than they seem.
    conversations
        Whether `question` is the turns before the answer, as a JSON list of `role` and `content`; else it is text.
    """

    splits: dict[str, list[Row]]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    conversations: bool = False


@dataclass(frozen=True)
class Written:
    """An answer that a model wrote, as a row has it.

    Attributes
    ----------
    answer
        In the form of the task's rows.
    right
        Whether its result is that of the gold answer; None for a task whose answers have no result.
    """

    answer: str
    right: bool | None


@dataclass(frozen=True)
class Lengths:
    """What was measured of a task's rows, for plans where they are not at hand; None for what nobody knows.

    Attributes
    ----------
    tokens, characters_per_token
        Of an example in the task's own template, end token included, and of its text.
    shortest_prompt, longest_answer
        In tokens: a step has most labels with the one, most stored logits with the other. A `longest_answer` of None
        is an answer of all tokens behind the prompt.
    train_rows, test_rows
        Rows that a data set of the hub has, if it is the task's usual one.
    longest_prompts
        Hub id → tokens of its longest test question.
    """

    tokens: float | None
    characters_per_token: float
    shortest_prompt: int
    longest_answer: int | None
    train_rows: int | None = None
    test_rows: int | None = None
    longest_prompts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Harness:
    """A task of lm-evaluation-harness that asks the test questions.

    Attributes
    ----------
    name, title
        Of the task, in `--tasks`, and of whose filters it has, in words.
    definition
        As the harness's YAML files hold it.
    filters
        Name of a metric of the task → the harness's filter whose `exact_match` it is.
    """

    name: str
    title: str
    definition: dict[str, Any]
    filters: Mapping[str, str]


@dataclass(frozen=True)
class Breakdown:
    """A number of every row by which a report groups the questions.

    Attributes
    ----------
    name
        Key in `ab_report.json`.
    title
        Of its chart.
    unit
        What is counted, in the singular.
    of_gold
        Gold answer → number.
    """

    name: str
    title: str
    unit: str
    of_gold: Callable[[str], int]


class Task(ABC):
    """One kind of data: `kind` of its settings in `kava/config/data.py`, and the answers to what others ask of it.

    Attributes
    ----------
    metrics
        By which answers are judged, the primary one first.
    breakdowns
        By which a report groups the questions, beside their length.
    lengths
        What was measured.
    form
        What rows are, as the doctor says it of a folder.
    essential
        What of an answer has to come back from its ids, in words.
    generated_as
        Name of data that is generated, for a model card; None where rows come from files.
    """

    kind: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    breakdowns: ClassVar[tuple[Breakdown, ...]] = ()
    lengths: ClassVar[Lengths]
    form: ClassVar[str]
    essential: ClassVar[str]
    generated_as: ClassVar[str | None] = None

    @abstractmethod
    def load(self, data: Any) -> Rows:
        """Rows of a run, checked.

        Parameters
        ----------
        data
            Settings of this task's kind.

        Raises
        ------
        UserError
            Data that is not there, has fewer rows than asked for, or holds rows that cannot be trained on or judged.
        """

    @abstractmethod
    def answer_start(self, answer: str) -> int | None:
        """Characters of a row's `answer` before its result: what stands there is the segment `reasoning`.

        None where all of it is the result, with the white space before it.
        """

    @abstractmethod
    def essentials(self, text: str) -> Any:
        """What is `essential` of a text, to be compared with that of another."""

    @abstractmethod
    def written(self, text: str, ended: bool, gold: str) -> Written | None:
        """What a model wrote in answer to a question, in the form of the task's rows; None if it cannot be one.

        Parameters
        ----------
        text
            As it was decoded, up to the end token or stop string.
        ended
            Whether the model ended it; else it was cut at the longest length, and counts only up to its result.
        gold
            The `answer` of the question's row.
        """

    def equations_only(self, answer: str) -> str:
        """An answer whose reasoning is its equations alone; asked for only of tasks with a reasoning."""
        raise AssertionError(f"{self.kind} has no reasoning, as its settings say: {answer!r}")

    @property
    def harness(self) -> Harness | None:
        """By which answers are generated and marked; None: answers are judged by the likelihood of the gold one."""
        return None

    def hopeless(self, samples: Sequence[Mapping[str, Any]], file: Path) -> str | None:
        """A sentence on a teacher that answers nothing, for who is about to train students on it; None if it does.

        Parameters
        ----------
        samples
            A row per question: `answer`, and a value for each metric.
        file
            Where they stand.
        """
        del samples, file
        return None

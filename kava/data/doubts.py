"""What a tokenizer does to examples that spoils training or scores without an error, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kava.data.prompt import prompt_ids
from kava.data.template import Template
from kava.data.tokens import Segment, encode_example
from kava.tasks.base import Task

# Evenly spread over a split: what a tokenizer cannot write is the same few characters in every row.
ROWS_READ: Final = 512
SHOWN: Final = 24


def tokenizer_doubts(task: Task, tokenizer: Any, template: Template, rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Sentences on rows whose answer does not come back from its ids, or whose prompt evaluation would not ask.

    Parameters
    ----------
    task, tokenizer, template
        Of the run.
    rows
        `question` and `answer`; at most `ROWS_READ` of them are read, evenly spread.

    Returns
    -------
    list of str
        Empty for a tokenizer that does what it should.
    """
    read = rows[:: max(1, -(-len(rows) // ROWS_READ))]
    lost, other = [], []
    for row in read:
        prompt, answer = _parts(encode_example(task, tokenizer, template, row))
        back: str = tokenizer.decode(answer, skip_special_tokens=True)
        if task.essentials(back) != task.essentials(row["answer"]):
            lost.append((row["answer"][-SHOWN:], back[-SHOWN:]))
        asked = prompt_ids(tokenizer, template.prompt(row["question"]))
        if asked != prompt:
            other.append(tokenizer.decode(asked[-3:]))
    found = []
    if lost:
        found.append(
            f"the tokenizer cannot write {task.essential}: in {_share(lost, read)} they do not come back from "
            f"the ids (…{lost[0][0]!r} comes back as …{lost[0][1]!r}), so that what is trained and scored is not the "
            "data's answer; choose models with another tokenizer"
        )
    if other:
        found.append(
            f"the tokenizer merges the end of the prompt with the beginning of the answer: in {_share(other, read)} "
            f"evaluation asks a prompt whose end (…{other[0]!r}) has other tokens than in training; change what stands "
            "before {answer} in `template`"
        )
    return found


def _parts(example: Mapping[str, Sequence[int]]) -> tuple[list[int], list[int]]:
    """Ids of the prompt, and of what follows it."""
    end = sum(segment == Segment.PROMPT for segment in example["segments"])
    return list(example["input_ids"][:end]), list(example["input_ids"][end:])


def _share(some: Sequence[object], rows: Sequence[object]) -> str:
    return f"{len(some) / len(rows):.1%} of {len(rows):,} rows"

"""Questions with their gold answers, as text and as ids: those of the test, and those of validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kava.config.data import Data
from kava.config.models import ModelSettings
from kava.config.specs import TokensKey
from kava.data.fit import Reach, positions, reach, require_fit
from kava.data.rows import load_rows
from kava.data.task import copy_task, read_rows
from kava.data.template import Wording
from kava.data.tokens import TokenSet, encode_example
from kava.errors import UserError
from kava.models.load import load_tokenizer
from kava.tasks.base import Row


@dataclass(frozen=True)
class Questions:
    """Questions of one split.

    Attributes
    ----------
    split
        `test` or `validation`.
    rows
        `question`, as the model reads it, and `answer`, the gold one.
    input_ids, segments
        Ids and `Segment` of each example as one of the models reads it, `[T]`.
    folder
        Of the harness's task that asks them, where answers are generated.
    """

    split: str
    rows: list[Row]
    input_ids: Sequence[np.ndarray]
    segments: Sequence[np.ndarray]
    folder: Path


def test_questions(tokens: TokenSet, teacher: ModelSettings, shortened: bool) -> Questions:
    """The test questions of a token set.

    Parameters
    ----------
    tokens
        Its ids of test rows, if it has some; where answers are generated, they are made here as tokenising would.
    teacher
        Whose tokenizer makes the ids: answers end in its end token.
    shortened
        Whether the model reads the equations of the reasoning alone (`student_reasoning`), as a student may.
    """
    rows = read_rows(tokens.task_folder)
    if tokens.test_ids is not None:
        assert tokens.test_segments is not None
        return Questions("test", rows, tokens.test_ids, tokens.test_segments, tokens.task_folder)
    tokenizer, key, task = load_tokenizer(teacher), _key(tokens), tokens.task
    template = Wording(tokenizer, key.template, key.chat).template
    own = [row | {"answer": task.equations_only(row["answer"])} if shortened else row for row in rows]
    examples = [encode_example(task, tokenizer, template, row) for row in own]
    ids, segments = ([np.array(example[name]) for example in examples] for name in ("input_ids", "segments"))
    return Questions("test", rows, ids, segments, tokens.task_folder)


def validation_questions(
    tokens: TokenSet, teacher: ModelSettings, shortened: bool, data: Data, folder: Path
) -> Questions:
    """The validation questions of a token set, those that are not too long.

    Parameters
    ----------
    tokens, teacher, shortened
        As of `test_questions`.
    data
        Where the rows lie.
    folder
        For the task that asks them, which is that of the test questions.

    Raises
    ------
    UserError
        The data are not those that the token set was made of.
    """
    key, loaded = _key(tokens), load_rows(data)
    tokenizer = load_tokenizer(teacher)
    wording = Wording(tokenizer, key.template, key.chat, loaded.conversations)
    rows = wording.rows(loaded.splits["validation"], "validation")
    read = [encode_example(tokens.task, tokenizer, wording.template, row)["input_ids"] for row in rows]
    kept = [number for number, ids in enumerate(read) if len(ids) <= key.max_length]
    if [read[number] for number in kept] != [ids.tolist() for ids in tokens.input_ids["validation"]]:
        raise UserError(
            f"the validation rows of the data are not those of the token set {tokens.folder}; put the data back that "
            "it was made of, or tokenise anew"
        )
    ids, segments = (tokens.student_ids, tokens.student_segments) if shortened else (tokens.input_ids, tokens.segments)
    asked = [rows[number] for number in kept]
    copy_task(tokens.task_folder, asked, folder)
    return Questions("validation", asked, ids["validation"], segments["validation"], folder)


def require_room(role: str, model: str, config: Any, questions: Questions) -> None:
    """Raise `UserError` unless a model has a row for every id and a position for every token of some questions."""
    found, limit = reach(questions.input_ids), positions(config)
    require_fit(role, model, config, Reach(found.largest_id, 0))
    if limit is not None and found.longest > limit:
        number = int(np.argmax([len(ids) for ids in questions.input_ids]))
        raise UserError(
            f"{questions.split} question {number} (from 0) has {found.longest:,} tokens with its gold answer, and the "
            f"{role} {model} has {limit:,} positions; drop it from the data, or choose a model with more positions"
        )


def _key(tokens: TokenSet) -> TokensKey:
    return TokensKey.model_validate(tokens.manifest["spec"])

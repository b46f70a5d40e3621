"""Token sets: the ids that teacher and student read, a segment per token, and the test questions.

A token set is a folder: `manifest.json`, `examples/` (a `datasets.DatasetDict` with the columns `input_ids` and
`segments` for train and validation, and `student_input_ids` and `student_segments` where the student reads less than
the teacher; and for test, where answers are judged by their likelihood) and `task/` (the test questions, as an
lm-evaluation-harness task where answers are generated).
"""

import hashlib
from collections.abc import Iterable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from kava.data.fit import Reach, reach
from kava.data.prompt import text_ids
from kava.data.template import Template
from kava.errors import UserError
from kava.files import canonical_json, read_json, sha256_json
from kava.tasks import task_of
from kava.tasks.base import Task


class Segment(IntEnum):
    """Part of an example that a token belongs to."""

    PROMPT = 0
    REASONING = 1
    ANSWER = 2


def of_segments(segments: np.ndarray, names: Iterable[str]) -> np.ndarray:
    """True for the tokens of named segments, `[T]`."""
    return np.isin(segments, [Segment[name.upper()] for name in names])


def encode_example(task: Task, tokenizer: Any, template: Template, row: Mapping[str, str]) -> dict[str, list[int]]:
    """Tokenise one example whole, so that ids are those of the text as the model would see it.

    Parameters
    ----------
    task
        Says where a row's answer goes from its reasoning to its result.
    tokenizer
        A fast tokenizer; its own start token is added, and one end token.
    template
        Text of an example.
    row
        `question` and `answer`, as text.

    Returns
    -------
    dict
        `input_ids` and `segments` (values of `Segment`), both of length T. The end token belongs to the answer.
    """
    text = template.fill(row)
    reasoning_start = len(text) - len(row["answer"])
    # The space before the reasoning is part of its first token in byte-level vocabularies.
    prompt_end = len(text[:reasoning_start].rstrip(template.trimmed))
    before_result = task.answer_start(row["answer"])
    answer_start = prompt_end if before_result is None else reasoning_start + before_result
    ids, offsets = text_ids(tokenizer, text)
    segments = [
        Segment.PROMPT if end <= prompt_end else Segment.REASONING if end <= answer_start else Segment.ANSWER
        for _, end in offsets
    ]
    if ids[-1] != tokenizer.eos_token_id:  # an answer may end with it already
        ids.append(tokenizer.eos_token_id)
        segments.append(Segment.ANSWER)
    return {"input_ids": ids, "segments": [int(segment) for segment in segments]}


def answers(input_ids: Iterable[np.ndarray], segments: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Ids of the reasoning and answer of each example, without its end token."""
    return [ids[of != Segment.PROMPT][:-1] for ids, of in zip(input_ids, segments, strict=True)]


def vocabulary_sha256(tokenizer: Any) -> str:
    """Hash of token → id, equal for tokenizers with the same vocabulary."""
    return sha256_json(tokenizer.get_vocab())


def require_same_tokenizer(teacher: Any, student: Any, texts: list[str]) -> None:
    """Raise `UserError` unless both tokenizers give the same ids, since KV is compared token by token."""
    ours, theirs = teacher.get_vocab(), student.get_vocab()
    if different := sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)):
        shared = len(ours.keys() | theirs.keys()) - len(different)
        sizes = " and ".join(f"{size:,}" for size in dict.fromkeys((len(ours), len(theirs))))
        raise UserError(
            f"teacher and student tokenizers share {shared:,} of {sizes} tokens (not, for example, {different[0]!r}); "
            "choose two models of one family, with one tokenizer"
        )
    for text in texts:
        if text_ids(teacher, text).ids != text_ids(student, text).ids:
            raise UserError(
                f"teacher and student tokenizers split {text[:60]!r} differently; choose two models with one tokenizer"
            )


class TokenSet:
    """A finished token set on disk.

    Parameters
    ----------
    manifest
        Path of its `manifest.json`.

    Attributes
    ----------
    input_ids, segments
        `train` and `validation` → ids and segments of every example as the teacher reads it.
    student_ids, student_segments
        The same for the student; the same objects where both read the same.
    test_ids, test_segments
        Of the test examples; None where answers are generated.
    """

    def __init__(self, manifest: Path) -> None:
        from datasets import load_from_disk

        self.folder = manifest.parent
        self.manifest = read_json(manifest)
        examples = load_from_disk(str(self.folder / "examples"))
        self.input_ids: dict[str, list[np.ndarray]] = {}
        self.segments: dict[str, list[np.ndarray]] = {}
        for split, columns in examples.with_format("numpy").items():
            self.input_ids[split] = list(columns["input_ids"])
            self.segments[split] = list(columns["segments"])
        self.test_ids, self.test_segments = self.input_ids.pop("test", None), self.segments.pop("test", None)
        self.student_ids, self.student_segments = self.input_ids, self.segments
        if self.manifest["spec"]["student_reasoning"] != "full":
            self.student_ids, self.student_segments = {}, {}
            for split, columns in examples.with_format("numpy").items():
                self.student_ids[split] = list(columns["student_input_ids"])
                self.student_segments[split] = list(columns["student_segments"])

    def lengths(self, split: str) -> list[int]:
        """Tokens that the teacher reads, per example of a split."""
        return [len(ids) for ids in self.input_ids[split]]

    @property
    def reach(self) -> Reach:
        """Largest id and longest example that the teacher reads."""
        return self._reach(self.input_ids)

    @property
    def student_reach(self) -> Reach:
        """The same of the student."""
        return self._reach(self.student_ids)

    def _reach(self, ids_of: Mapping[str, list[np.ndarray]]) -> Reach:
        return reach(ids for of_split in (*ids_of.values(), self.test_ids or []) for ids in of_split)

    @property
    def task(self) -> Task:
        return task_of(self.manifest["spec"]["data"]["source"]["kind"])

    @property
    def task_folder(self) -> Path:
        """Folder of the test questions; that to give to lm-eval as `--include_path`."""
        return self.folder / "task"

    @property
    def questions_sha256(self) -> str:
        return self.manifest["splits"]["test"]["sha256"]


def content_sha256(columns: Mapping[str, list[list[int]]]) -> str:
    """Hash of all ids and segments of a split, for the manifest."""
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(canonical_json([name, columns[name]]).encode())
    return digest.hexdigest()

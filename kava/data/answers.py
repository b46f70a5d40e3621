"""Answers that the teacher wrote to the training questions: their files, and the rows that they become.

A folder of answers is `manifest.json`, written last, and one file of JSON lines for every `shard_questions` questions,
with a line per answer, in the order of questions and samples.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kava.errors import UserError
from kava.files import checksums, read_json, write_atomic
from kava.tasks.base import Row

# With answers to a smaller share of the questions, a run is of the gold text, or of little data.
FEW = 0.5


@dataclass(frozen=True)
class WrittenAnswer:
    """One line.

    Attributes
    ----------
    question, sample
        Place of the question among the training rows, and of the answer among those to it, both from 0.
    text
        What the teacher wrote, up to its end.
    answer
        The same as a row has it; None if it cannot be one.
    right
        Whether it has the gold result; None where that is not known.
    kept
        Whether it is trained on.
    ended
        Whether the teacher ended it; else it was cut at `max_new_tokens`.
    tokens
        That the teacher wrote, its end token included.
    """

    question: int
    sample: int
    text: str
    answer: str | None
    right: bool | None
    kept: bool
    ended: bool
    tokens: int


def shard_path(folder: Path, shard: int) -> Path:
    """File of some questions' answers."""
    return folder / f"answers-{shard:05}.jsonl"


def write_shard(path: Path, answers: Sequence[WrittenAnswer]) -> None:
    """Write a file, whole or not at all."""
    write_atomic(path, "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers))


def read_shard(path: Path) -> list[WrittenAnswer]:
    """Lines of a file, which is there; `UserError` for a file that holds others."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return [WrittenAnswer(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `kava write` again") from None


def teacher_rows(manifest: Path, rows: Sequence[Row]) -> list[Row]:
    """Training rows with the teacher's answers in place of the gold ones, in the order of their questions.

    A question has a row for each answer that is kept. One without any has its gold row, or none: as the setting
    `otherwise` says that the answers were written under.

    Raises
    ------
    UserError
        A file is not as it was written.
    """
    facts, folder = read_json(manifest), manifest.parent
    require_as_written(facts, folder)
    kept: dict[int, list[str]] = {}
    for name in sorted(facts["shards"]):
        for line in read_shard(folder / name):
            if line.kept and line.answer is not None:
                kept.setdefault(line.question, []).append(line.answer)
    with_gold = facts["spec"]["answers"]["otherwise"] == "gold"
    found = []
    for number, row in enumerate(rows):
        own = [row | {"answer": answer} for answer in kept.get(number, ())]
        found += own or ([row] if with_gold else [])
    return found


def doubts(facts: dict[str, Any]) -> list[str]:
    """A sentence on answers of which hardly any is kept, so that a run is not what its settings say."""
    questions = facts["questions"]
    if questions["kept"] >= FEW * questions["asked"]:
        return []
    others = "the others have the gold answer" if questions["gold"] else "the others are dropped"
    return [
        f"the teacher's own answers are kept for {questions['kept']} of {questions['asked']} training questions, and "
        f"{others}; if answers are cut ({facts['answers']['cut']} are), raise data.answers.max_new_tokens; if they are "
        "wrong, take a teacher that solves these questions, or draw several samples."
    ]


def changed_files(facts: dict[str, Any], folder: Path) -> list[str]:
    """Files that a manifest vouches for and that are gone, or not as they were written."""
    shards = facts["shards"]
    there = checksums(folder, [folder / name for name in shards if (folder / name).is_file()])
    return [name for name in shards if there.get(name) != shards[name]]


def require_as_written(facts: dict[str, Any], folder: Path) -> None:
    """Raise `UserError` unless all files of a manifest are as they were written."""
    if changed := changed_files(facts, folder):
        raise UserError(f"{folder / changed[0]} is not as it was written; run `kava write`, which writes it anew")

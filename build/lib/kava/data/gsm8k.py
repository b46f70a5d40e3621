"""GSM8K rows from the hub or from a directory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kava.config.schema import Gsm8kData
from kava.config.splits import split_files
from kava.errors import UserError
from kava.text import first_line

Row = dict[str, str]


def load_splits(data: Gsm8kData) -> dict[str, list[Row]]:
    """Rows of `train`, `validation` (the end of the training split) and `test`, each `{question, answer}`.

    Raises
    ------
    UserError
        Fewer rows than asked for, a line that is no JSON object, a missing field; data that is not there.
    """
    folder = data_folder(data)
    train, test = (read_split(folder, split) for split in ("train", "test"))
    if data.validation >= len(train):
        raise UserError(f"data.validation={data.validation} leaves no training example of {len(train)}; lower it")
    held_out, train = train[-data.validation :], train[: -data.validation]
    for name, limit, rows in (("train", data.train, train), ("test", data.test, test)):
        if limit is not None and limit > len(rows):
            raise UserError(f"data.{name}={limit}, but {data.path} has {len(rows)} such rows; lower it or use null")
    return {"train": train[: data.train], "validation": held_out, "test": test[: data.test]}


def data_folder(data: Gsm8kData) -> Path:
    """The directory itself, or the files of the hub's data set at its revision, downloaded unless they are there."""
    if Path(data.path).is_dir():
        return Path(data.path)
    from kava.hub import Repository, download

    return download(Repository("dataset", data.path, data.revision))


def read_split(folder: Path, split: str) -> list[Row]:
    """All rows of a split of a directory."""
    form, files = split_files(folder, split)
    if form == "json":
        (file,) = files
        return list(_lines(file))
    try:
        return [_text(row) for row in _rows(form, files)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{split} of {folder} cannot be read from {files[0].name} ({first_line(error)}); it needs rows with "
            "question and answer, both text: copy or download the files again"
        ) from None


def _lines(file: Path) -> Iterator[Row]:
    # Line by line, since `datasets` wants one type of every column, also of those that nobody reads.
    try:
        lines = file.read_text(encoding="utf-8").strip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error}); write it anew in that encoding") from None
    for number, line in enumerate(lines, start=1):
        try:
            yield _text(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}: expected a JSON object with question and answer, both text ({error!r}); mend "
                "or drop it"
            ) from None


def _rows(form: str, files: list[Path]) -> Any:
    from datasets import load_dataset, load_from_disk

    if form == "saved":
        return load_from_disk(str(files[0].parent))
    # As a stream, since `datasets` would otherwise keep a copy, and tell by the time of change whether it is stale.
    return load_dataset("parquet", data_files={"rows": [str(file) for file in files]}, split="rows", streaming=True)


def _text(row: Any) -> Row:
    found = {"question": row["question"], "answer": row["answer"]}
    if not all(isinstance(text, str) for text in found.values()):
        raise TypeError("question and answer must be text")
    return found

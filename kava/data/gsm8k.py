"""GSM8K rows from the hub or from a directory, all read by `datasets`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kava.config.schema import Gsm8kData
from kava.config.splits import split_files
from kava.errors import UserError

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
        with _without_log():
            try:
                return _texts(_rows("json", files))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(_bad_line(file, error)) from None
    try:
        return _texts(_rows(form, files))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{split} of {folder} cannot be read from {files[0].name} ({_first_line(error)}); it needs rows with "
            "question and answer, both text: copy or download the files again"
        ) from None


def _rows(form: str, files: list[Path]) -> Any:
    from datasets import load_dataset, load_from_disk

    if form == "saved":
        return load_from_disk(str(files[0].parent))
    # As a stream, since `datasets` would otherwise keep a copy, and tell by the time of change whether it is stale.
    return load_dataset(form, data_files={"rows": [str(file) for file in files]}, split="rows", streaming=True)


def _texts(rows: Any) -> list[Row]:
    found = [{"question": row["question"], "answer": row["answer"]} for row in rows]
    if not all(isinstance(text, str) for row in found for text in row.values()):
        raise TypeError("question and answer must be text")
    return found


def _bad_line(file: Path, error: Exception) -> str:
    """`datasets` says what it could not read, and not always where."""
    for number, line in enumerate(file.read_text().strip("\n").split("\n"), start=1):
        try:
            _texts([json.loads(line)])
        except (ValueError, KeyError, TypeError) as found:
            return (
                f"{file}, line {number}: expected a JSON object with question and answer ({found!r}); mend or drop it"
            )
    return f"{file}: expected JSON objects with question and answer, one per line ({_first_line(error)}); mend it"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


@contextmanager
def _without_log() -> Iterator[None]:
    """What `datasets` logs of a line that it cannot read stands in the error."""
    from datasets.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)

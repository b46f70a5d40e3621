"""GSM8K rows from the hub or from a directory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kava.config.schema import Gsm8kData
from kava.config.splits import Format, split_files
from kava.errors import UserError
from kava.text import first_line

Row = dict[str, str]
FIELDS = ("question", "answer")


def load_splits(data: Gsm8kData) -> dict[str, list[Row]]:
    """Rows of `train`, `validation` (the end of the training split) and `test`, each `{question, answer}`.

    Raises
    ------
    UserError
        Fewer rows than asked for, a line that is no JSON object, a missing field; data that is not there.
    """
    folder = data_folder(data)
    return divide(data, *(read_split(folder, split) for split in ("train", "test")))


def divide(data: Gsm8kData, train: list[Row], test: list[Row]) -> dict[str, list[Row]]:
    """The splits of a run, from all rows of a data set; raises `UserError` where there are too few."""
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
    rows = [row for file in files for row in (_lines(file) if form == "json" else _records(form, file, split))]
    if not rows:
        raise UserError(f"{split} of {folder} has no rows ({files[0].name} is empty); give it rows, or copy it again")
    return rows


def _lines(file: Path) -> Iterator[Row]:
    # Line by line, since `datasets` wants one type of every column, also of those that nobody reads.
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # with or without the mark that Windows writes first
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error}); write it anew in that encoding") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); allow it, or copy the file again") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                # As floats, since integers of thousands of digits are refused; no number is read.
                record = json.loads(line, object_pairs_hook=_once, parse_int=float)
                yield _text(record)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{file}, line {number}: expected a JSON object with question and answer, both text "
                    f"({first_line(error)}); correct or drop it"
                ) from None


def _records(form: Format, file: Path, split: str) -> Iterator[Row]:
    where, needed = (
        f"{split} of {file.parent} cannot be read from {file.name}",
        "rows with question and answer, both text",
    )
    try:
        for number, record in enumerate(_read(form, file)):
            try:
                yield _text(record)
            except ValueError as error:
                raise UserError(f"{where} ({error}, in row {number}); it needs {needed}: correct or drop it") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{where} ({first_line(error)}); it needs {needed}: copy or download the files again") from None


def _read(form: Format, file: Path) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow file, from an open file: `datasets` takes `[`, `*`, `#` and `::` of a path for its own."""
    with file.open("rb") as opened:
        if form == "saved":
            reader = pa.ipc.open_stream(opened)
            names, batches = reader.schema.names, iter(reader)
        else:
            parquet = pq.ParquetFile(opened)
            names = parquet.schema_arrow.names
            batches = parquet.iter_batches(columns=[name for name in FIELDS if name in names])
        for name in FIELDS:
            if names.count(name) > 1:
                raise UserError(f"{file} has the column {name!r} {names.count(name)} times; leave one of them")
        for batch in batches:
            yield from batch.select([name for name in FIELDS if name in names]).to_pylist()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        for name in FIELDS:
            if sum(key == name for key, _ in pairs) > 1:
                raise ValueError(f"{name} is there twice")
    return record


def _text(record: Any) -> Row:
    """A row's question and answer; `ValueError` where they are no text that a tokenizer can read."""
    if not isinstance(record, dict):
        raise ValueError(f"it is a {type(record).__name__}")
    row = {}
    for name in FIELDS:
        if name not in record:
            raise ValueError(f"{name} is missing; there is {', '.join(map(str, record)) or 'nothing'}")
        text = record[name]
        if not isinstance(text, str):
            raise ValueError(
                f"question and answer must be text, and {name} is {'null' if text is None else type(text).__name__}"
            )
        if "\0" in text:
            raise ValueError(f"{name} holds a NUL character")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} holds half of a surrogate pair, which is no character") from None
        row[name] = text
    if not row["question"].strip():
        raise ValueError("question is empty")
    return row

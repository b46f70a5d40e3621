"""Rows from files, of a directory or of the hub's data set: JSON lines, Parquet, or what `datasets` saved to disk.

What a row must hold is the task's: it gives the names of fields, and a function that makes a row of a record.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kava.config.data import FolderData
from kava.config.splits import Format, split_files
from kava.errors import UserError
from kava.tasks.base import Row, Rows
from kava.text import first_line

# Of the training rows; a larger share for validation takes from training what it needs more.
USUAL_VALIDATION = 0.2


@dataclass(frozen=True)
class Reading:
    """How records become rows.

    Attributes
    ----------
    fields
        Columns that are read.
    needed
        What a record must be, in words behind "a JSON object with" or "rows with".
    row
        Record → row; raises `ValueError` with what is wrong.
    """

    fields: tuple[str, ...]
    needed: str
    row: Callable[[dict[str, Any]], Row]


def load_folder(data: FolderData, reading: Reading) -> Rows:
    """Rows of `train`, `validation` (the end of the training split) and `test`.

    Raises
    ------
    UserError
        Fewer rows than asked for, a line that is no JSON object, a row that is none; data that is not there.
    """
    folder = data_folder(data)
    train, test = (read_split(folder, split, reading) for split in ("train", "test"))
    if data.validation >= len(train):
        raise UserError(f"data.validation={data.validation} leaves no training example of {len(train)}; lower it")
    rest, held_out = train[: -data.validation], train[-data.validation :]
    for name, limit, rows in (("train", data.train, rest), ("test", data.test, test)):
        if limit is not None and limit > len(rows):
            raise UserError(f"data.{name}={limit}, but {data.path} has {len(rows)} such rows; lower it or use null")
    splits = {"train": rest[: data.train], "validation": held_out, "test": test[: data.test]}
    taken = f"validation is the last {data.validation} of {len(train)} training rows"
    warnings = []
    if data.validation > max(1, USUAL_VALIDATION * len(train)):
        warnings.append(
            f"{taken}, {data.validation / len(train):.0%} of them, and leaves {len(rest)} to train on; with "
            f"data.validation: {max(1, len(train) // 10)} it would take a tenth."
        )
    return Rows(splits, [f"{taken}; train is the first {len(splits['train'])}"], warnings)


def data_folder(data: FolderData) -> Path:
    """The directory itself, or the files of the hub's data set at its revision, downloaded unless they are there."""
    if Path(data.path).is_dir():
        return Path(data.path)
    from kava.hub import Repository, download

    return download(Repository("dataset", data.path, data.revision))


def read_split(folder: Path, split: str, reading: Reading) -> list[Row]:
    """All rows of a split of a directory."""
    form, files = split_files(folder, split)
    read = _lines if form == "json" else _records
    rows = [row for file in files for row in read(form, file, split, reading)]
    if not rows:
        raise UserError(f"{split} of {folder} has no rows ({files[0].name} is empty); give it rows, or copy it again")
    return rows


def require_text(name: str, text: Any, fields: str) -> str:
    """A field as text that a tokenizer can read; `ValueError` that names it where it is none."""
    if not isinstance(text, str):
        raise ValueError(f"{fields} must be text, and {name} is {'null' if text is None else type(text).__name__}")
    if "\0" in text:
        raise ValueError(f"{name} holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half of a surrogate pair, which is no character") from None
    return text


def missing(name: str, record: dict[str, Any]) -> ValueError:
    """That a field is not there, with those that are."""
    return ValueError(f"{name} is missing; there is {', '.join(map(str, record)) or 'nothing'}")


def _lines(_form: Format, file: Path, _split: str, reading: Reading) -> Iterator[Row]:
    # Line by line, since `datasets` wants one type of every column, also of those that nobody reads.
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # with or without the mark that Windows writes first
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error}); write it anew in that encoding") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); allow it, or copy the file again") from None

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in reading.fields:
            if names.count(name) > 1:
                raise ValueError(f"{name} is there twice")
        return dict(pairs)

    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                # As floats, since integers of thousands of digits are refused; no number is read.
                record = json.loads(line, object_pairs_hook=once, parse_int=float)
                if not isinstance(record, dict):
                    raise ValueError(f"it is a {type(record).__name__}")
                yield reading.row(record)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{file}, line {number}: expected a JSON object with {reading.needed} ({first_line(error)}); "
                    "correct or drop it"
                ) from None


def _records(form: Format, file: Path, split: str, reading: Reading) -> Iterator[Row]:
    where, needed = f"{split} of {file.parent} cannot be read from {file.name}", f"rows with {reading.needed}"
    try:
        for number, record in enumerate(_read(form, file, reading.fields)):
            try:
                yield reading.row(record)
            except ValueError as error:
                raise UserError(f"{where} ({error}, in row {number}); it needs {needed}: correct or drop it") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{where} ({first_line(error)}); it needs {needed}: copy or download the files again") from None


def _read(form: Format, file: Path, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow file, from an open file: `datasets` takes `[`, `*`, `#` and `::` of a path for its own."""
    with file.open("rb") as opened:
        if form == "saved":
            reader = pa.ipc.open_stream(opened)
            names, batches = reader.schema.names, iter(reader)
        else:
            parquet = pq.ParquetFile(opened)
            names = parquet.schema_arrow.names
            batches = parquet.iter_batches(columns=[name for name in fields if name in names])
        for name in fields:
            if names.count(name) > 1:
                raise UserError(f"{file} has the column {name!r} {names.count(name)} times; leave one of them")
        for batch in batches:
            yield from batch.select([name for name in fields if name in names]).to_pylist()

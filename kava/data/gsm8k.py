"""GSM8K rows from the hub or from a directory of JSON lines."""

import json
from pathlib import Path

from kava.config.schema import Gsm8kData
from kava.errors import UserError

Row = dict[str, str]


def load_splits(data: Gsm8kData) -> dict[str, list[Row]]:
    """Rows of `train`, `validation` (the end of the training split) and `test`, each `{question, answer}`.

    Raises
    ------
    UserError
        Fewer rows than asked for, a line that is no JSON object, a missing field.
    """
    train, test = (_read(data, split) for split in ("train", "test"))
    if data.validation >= len(train):
        raise UserError(f"data.validation={data.validation} leaves no training example of {len(train)}; lower it")
    held_out, train = train[-data.validation :], train[: -data.validation]
    for name, limit, rows in (("train", data.train, train), ("test", data.test, test)):
        if limit is not None and limit > len(rows):
            raise UserError(f"data.{name}={limit}, but {data.path} has {len(rows)} such rows; lower it or use null")
    return {"train": train[: data.train], "validation": held_out, "test": test[: data.test]}


def _read(data: Gsm8kData, split: str) -> list[Row]:
    file = Path(data.path) / f"{split}.jsonl"
    if not file.is_file():
        return _read_hub(data, split)
    rows = []
    for number, line in enumerate(file.read_text().strip("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
            rows.append({"question": row["question"], "answer": row["answer"]})
            if not all(isinstance(text, str) for text in rows[-1].values()):
                raise TypeError("question and answer must be text")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}: expected a JSON object with question and answer ({error!r}); mend or drop it"
            ) from None
    return rows


def _read_hub(data: Gsm8kData, split: str) -> list[Row]:
    from datasets import load_dataset

    try:
        rows = load_dataset(data.path, "main", split=split, revision=data.revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load {data.path} at {data.revision} ({error}); check the network, or set data.path to a "
            "directory with train.jsonl and test.jsonl"
        ) from None
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]

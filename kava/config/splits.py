"""Which files of a data directory hold a split: JSON lines, Parquet, or what `datasets` saved to disk."""

import json
import re
from pathlib import Path
from typing import Literal

from kava.errors import UserError

# The number of a shard and how many there are, in every naming: `-00000-of-00002`, with a hash behind, `_0_of_2`.
SHARD = re.compile(r"(?<!\d)(\d+)[-_]of[-_](\d+)(?!\d)")
# The last number of a name that does not say of how many it is one.
NUMBER = re.compile(r"\d+(?=\D*$)")
Format = Literal["json", "parquet", "saved"]
FORMATS = "train.jsonl and test.jsonl, train-*.parquet and test-*.parquet, or what DatasetDict.save_to_disk wrote"
# Where Parquet files lie in a data set of the hub: beside its card, below its first configuration, or in `data`.
PARQUET_FOLDERS = ("", "main/", "data/")
# What `split_files` looks for, and the card: all that is fetched of a data set of the hub.
PATTERNS = ["README.md", "train.jsonl", "test.jsonl"] + [
    f"{folder}{split}{shard}.parquet"
    for folder in PARQUET_FOLDERS
    for split in ("train", "test")
    for shard in ("", "-*")
]


def split_files(folder: Path, split: str) -> tuple[Format, list[Path]]:
    """Files that hold a split, in the order of their rows. JSON lines go before saved data, and that before Parquet.

    Raises
    ------
    UserError
        There are none, some of several are missing, or they are of two sets.
    """
    lines = folder / f"{split}.jsonl"
    if lines.is_file():
        return "json", [lines]
    if (folder / "dataset_dict.json").is_file():
        return "saved", _whole(_saved(folder, split), split)
    for below in PARQUET_FOLDERS:
        found = [*folder.glob(f"{below}{split}.parquet"), *folder.glob(f"{below}{split}-*.parquet")]
        if files := sorted(file for file in found if file.is_file()):
            return "parquet", _whole(files, split)
    alike = sorted(path.name for path in folder.glob(f"{split}*"))
    also = f" ({', '.join(alike[:3])} there is none of these)" if alike else ""
    raise UserError(f"data directory {folder} has no {split} split{also}; it needs {FORMATS}")


def _saved(folder: Path, split: str) -> list[Path]:
    """Files that the state of a saved split lists."""
    state = folder / split / "state.json"
    if not state.is_file():
        raise UserError(f"data directory {folder} was saved without {split!r}; save one with train and test")
    try:
        files = [
            state.parent / file["filename"] for file in json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        ]
    except (ValueError, KeyError, TypeError):
        files = []
    if not files:
        raise UserError(f"{state} lists no data files; save the data with DatasetDict.save_to_disk again")
    for file in files:
        if not file.is_file():
            raise _missing(file)
    return files


def _whole(files: list[Path], split: str) -> list[Path]:
    """Files in the order of their numbers, each number there once, as many as their names say there are."""
    numbers = [SHARD.search(file.name) for file in files]
    shards = {int(number[1]): file for number, file in zip(numbers, files, strict=True) if number}
    if not shards:
        return _numbered(files, split)
    counts = {int(number[2]) for number in numbers if number}
    (count, *others) = counts
    first = int(0 not in shards and count in shards)  # some count from one
    expected = range(first, first + count)
    if others or len(shards) < len(files) or not shards.keys() <= set(expected):
        raise _two_sets(files, split)
    for number in expected:
        if number not in shards:
            raise _missing(files[0].with_name(_name(files[0].name, number)))
    return [shards[number] for number in expected]


def _numbered(files: list[Path], split: str) -> list[Path]:
    """Files whose names do not say how many there are: one whole file is alone, and counted ones have no gap."""
    if len(files) > 1 and any(file.stem == split for file in files):
        raise _two_sets(files, split)
    numbers = {int(found[0]): file for file in files if (found := NUMBER.search(file.stem))}
    stems = {NUMBER.sub("", file.stem) for file in files}
    if len(numbers) < len(files) or len(stems) > 1 or min(numbers) > 1:
        return files  # names, years: nothing is counted
    for number in range(min(numbers), max(numbers)):
        if number not in numbers:
            of_another = files[0].name
            start, end = NUMBER.search(files[0].stem).span()  # type: ignore[union-attr]
            raise _missing(files[0].with_name(f"{of_another[:start]}{number:0{end - start}}{of_another[end:]}"))
    return [numbers[number] for number in sorted(numbers)]


def _two_sets(files: list[Path], split: str) -> UserError:
    names = [file.name for file in files]
    return UserError(
        f"{files[0].parent} holds the {split} split more than once, or parts of two ({', '.join(names[:4])}"
        f"{', …' if len(names) > 4 else ''}); leave the files of one set there"
    )


def _name(of_another: str, number: int) -> str:
    """Name of a shard, from another of its set; `*` stands for the hash of its own."""
    match = SHARD.search(of_another)
    assert match, f"{of_another} has no number"
    start, end = match.span(1)
    hashed = of_another[match.end() :].split(".")[0]
    tail = of_another[end:].replace(hashed, hashed[0] + "*") if hashed else of_another[end:]
    return f"{of_another[:start]}{number:0{end - start}}{tail}"


def _missing(file: Path) -> UserError:
    return UserError(f"{file} is missing, so the data is not whole; copy or download it again")

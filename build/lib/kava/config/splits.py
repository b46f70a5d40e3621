"""Which files of a data directory hold a split: JSON lines, Parquet, or what `datasets` saved to disk."""

import re
from pathlib import Path
from typing import Literal

from kava.errors import UserError
from kava.files import read_json

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
        There are none, or some of several are missing.
    """
    lines = folder / f"{split}.jsonl"
    if lines.is_file():
        return "json", [lines]
    if (folder / "dataset_dict.json").is_file():
        state = folder / split / "state.json"
        if not state.is_file():
            raise UserError(f"data directory {folder} was saved without {split!r}; save one with train and test")
        return "saved", _present([state.parent / file["filename"] for file in read_json(state)["_data_files"]])
    for below in PARQUET_FOLDERS:
        if files := sorted([*folder.glob(f"{below}{split}.parquet"), *folder.glob(f"{below}{split}-*.parquet")]):
            return "parquet", _whole(files)
    raise UserError(f"data directory {folder} has no {split} split; it needs {FORMATS}")


def _whole(files: list[Path]) -> list[Path]:
    """Complete `train-00000-of-00002.parquet` by the files that it says there are."""
    numbered = re.fullmatch(r"(.+-)(\d+)-of-(\d+)(\.parquet)", files[0].name)
    if not numbered:
        return files
    stem, digits, count, suffix = numbered.groups()
    names = [f"{stem}{shard:0{len(digits)}}-of-{count}{suffix}" for shard in range(int(count))]
    return _present([files[0].with_name(name) for name in names])


def _present(files: list[Path]) -> list[Path]:
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, so the data is not whole; copy or download it again")
    return files

"""Data as users bring it: ends of answers, rows with odd characters, shards with all kinds of names."""

import json
from collections.abc import Iterable
from pathlib import Path
from shutil import move
from tempfile import mkdtemp
from typing import Any

from datasets import Dataset, DatasetDict

from kava.config.data import Gsm8kData
from kava.tasks import task_of

GSM8K = task_of("gsm8k")

# How an answer ends, which the harness's filters read as it stands.
READ = (
    "#### 18", "#### 1,000", "#### 3.50", "#### .5", "#### -3", "#### 0", "#### 007", "#### 18.", "#### 18,",
    "#### 12345678901234567890123456789", "##### 18",
)  # fmt: skip
# How an answer ends → how it is spelled for the filters.
SPELLED = {
    "#### 18 ": "#### 18",
    "#### 18\t": "#### 18",
    "#### 18\n": "#### 18",
    "#### 18\n\n": "#### 18",
    "#### 18\r\n": "#### 18",
    "#### 18\r": "#### 18",
    "#### 18\u2028": "#### 18",
    "#### 18\u00a0": "#### 18",
    "#### 18\u200b": "#### 18",
    "####18": "#### 18",
    "####-3": "#### -3",
    "####  18": "#### 18",
    "####\t18": "#### 18",
    "####\n18": "#### 18",
    "####\r\n18\r\n": "#### 18",
    "####\u00a018": "#### 18",
    "####\u202f18": "#### 18",
    "####\u300018": "#### 18",
    "#### \ufeff18": "#### 18",
    "#### +3": "#### 3",
    "#### \u22123": "#### -3",
    "#### $18": "#### 18",
    "#### -$18": "#### -18",
    "#### $-18": "#### -18",
    "#### $1,000.50": "#### 1,000.50",
    "#### \uff11\uff18": "#### 18",
    "#### \u096d\u0968": "#### 72",
}
# How an answer ends of which nobody can say what number the filters should read.
REFUSED = (
    "#### 50%", "#### Vienna", "#### 1/2", "#### \u00bd", "#### 18 apples", "#### 18apples", "#### 5\n#### 18",
    "#### 18 ####", "####", "#### ", "#### **18**", "#### \\boxed{18}", "#### $18$", "#### 1e5", "#### 1.8e+1",
    "#### 10\u00b2", "#### 1 000", "#### 1\u00a0000", "#### 1'000", "#### 18\nThat is all.", "#### 18 (apples)",
    "#### (18)", "#### = 18", "#### x = 18", "#### #18", "#### 18!", "#### 18:", "#### \u20ac18", "#### 18 \u20ac",
    "#### EUR 18", "#### 18-20", "#### 12:30", "#### --3", "#### - 3", "#### -", "#### ...", "#### \u221e", "#### 0x12",
    "#### 18</s>", "#### 18<|im_end|>", "#### eighteen", "#### yes", "#### A", "#### [18]", "#### '18'", "####: 18",
)  # fmt: skip
# A stop string in the reasoning ends an answer before its mark.
CUT = "Question: is it 5? Yes.\n#### 5"


def rows(count: int, ending: str = "#### 18", what: str = "row") -> list[dict[str, str]]:
    """Rows with different questions, all of whose answers end alike."""
    return [{"question": f"{what} {n}: how many?", "answer": f"9+9=<<9+9=18>>18\n{ending}"} for n in range(count)]


def write_lines(folder: Path, train: Iterable[Any], test: Iterable[Any], before: bytes = b"") -> Path:
    """JSON lines; what is text already is written as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, of_split in (("train", train), ("test", test)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in of_split]
        (folder / f"{split}.jsonl").write_bytes(before + "\n".join(lines).encode())
    return folder


def write_parquet(folder: Path, train: list[Any], test: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, of_split in (("train", train), ("test", test)):
        with (folder / f"{split}.parquet").open("wb") as file:  # `datasets` takes `::` in a path for its own
            Dataset.from_list(of_split).to_parquet(file)
    return folder


def save_to_disk(folder: Path, train: list[Any], test: list[Any], shards: int = 1) -> Path:
    """As `datasets` does it; by way of a folder with a plain name, for the same reason."""
    plain = Path(mkdtemp())
    saved = DatasetDict({"train": Dataset.from_list(train), "test": Dataset.from_list(test)})
    saved.save_to_disk(plain / "data", num_shards={"train": shards, "test": 1})
    folder.parent.mkdir(parents=True, exist_ok=True)
    move(plain / "data", folder)
    plain.rmdir()
    return folder


def write_shards(folder: Path, names: Iterable[str], rows_each: int = 2) -> Path:
    """A Parquet file of its own rows for each name, and a test split beside them."""
    write_parquet(folder, rows(1), rows(2, what="test"))
    (folder / "train.parquet").unlink()
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows(rows_each, what=f"file {number}")).to_parquet(folder / name)
    return folder


def gsm8k_data(folder: Path, validation: int = 1, **settings: Any) -> Gsm8kData:
    return Gsm8kData(path=str(folder), validation=validation, **settings)

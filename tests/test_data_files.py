"""Which files are a data set: shards under every kind of name, folders with every kind of path."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from zoo.data import gsm8k_data, rows, save_to_disk, write_lines, write_parquet, write_shards

from kava.config.identity import data_identity
from kava.config.splits import split_files
from kava.data.rows import load_rows
from kava.errors import UserError
from kava.tasks.files import read_split
from kava.tasks.gsm8k import READING

HASHES = ("a09b74b3ef9c3b56", "5f3c1d2e4b6a7988", "0123456789abcdef")
WHOLE = {
    "plain": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
    "of the hub, a hash for each": [f"data/train-{n:05}-of-00003-{HASHES[n]}.parquet" for n in range(3)],
    "one hash": [f"main/train-{n:05}-of-00002-{HASHES[0]}.parquet" for n in range(2)],
    "one alone": [f"train-00000-of-00001-{HASHES[0]}.parquet"],
    "underscores": ["train-part_00000_of_00002.parquet", "train-part_00001_of_00002.parquet"],
    "from one": ["train-1-of-2.parquet", "train-2-of-2.parquet"],
    "without zeros": [f"train-{n}-of-12.parquet" for n in range(12)],
    "counted, not said of how many": [f"train-{n}.parquet" for n in range(11)],
    "years": ["train-2021.parquet", "train-2023.parquet"],
    "without numbers": ["train-a.parquet", "train-b.parquet"],
}
TORN = {
    "the second, hashed": ([WHOLE["of the hub, a hash for each"][0]], "train-00001-of-00003-*.parquet"),
    "the first, hashed": (WHOLE["of the hub, a hash for each"][1:], "train-00000-of-00003-*.parquet"),
    "the one between": (WHOLE["of the hub, a hash for each"][::2], "train-00001-of-00003-*.parquet"),
    "the last": (WHOLE["plain"][:1], "train-00001-of-00002.parquet"),
    "the first": (WHOLE["plain"][1:], "train-00000-of-00002.parquet"),
    "underscores": (WHOLE["underscores"][:1], "train-part_00001_of_00002.parquet"),
    "from one": (WHOLE["from one"][:1], "train-0-of-2.parquet"),
    "counted, not said of how many": (["train-0.parquet", "train-2.parquet"], "train-1.parquet"),
    "counted from one": ([f"train-part-{n:05}.parquet" for n in (1, 2, 4)], "train-part-00003.parquet"),
    "without zeros": (WHOLE["without zeros"][:7] + WHOLE["without zeros"][8:], "train-7-of-12.parquet"),
}
MIXED = {
    "two counts": [*WHOLE["plain"], *(f"train-{n:05}-of-00003.parquet" for n in range(3))],
    "two hashes of one number": [
        *(f"train-{n:05}-of-00002-{HASHES[0]}.parquet" for n in range(2)),
        *(f"train-{n:05}-of-00002-{HASHES[1]}.parquet" for n in range(2)),
    ],
    "half of one and half of another": [f"train-00000-of-00002-{HASHES[n]}.parquet" for n in range(2)],
    "hashed and not": [*WHOLE["plain"], f"train-00000-of-00002-{HASHES[0]}.parquet"],
    "numbered and whole": ["train.parquet", *WHOLE["plain"]],
    "a version and whole": ["train.parquet", "train-v2.parquet"],
    "a copy": [*WHOLE["plain"], "train-00001-of-00002 (1).parquet"],
    "two subsets": [f"train-{part}-{n:05}-of-00002.parquet" for part in ("easy", "hard") for n in range(2)],
    "more than there are": [f"train-{n:05}-of-00002.parquet" for n in range(3)],
}


@pytest.mark.parametrize("names", WHOLE.values(), ids=WHOLE)
def test_shards_that_are_all_there_give_their_rows_in_order(names: list[str], tmp_path: Path) -> None:
    write_shards(tmp_path, names)
    assert [row["question"] for row in read_split(tmp_path, "train", READING)] == [
        f"file {file} {row}: how many?" for file in range(len(names)) for row in range(2)
    ]
    assert len(data_identity(gsm8k_data(tmp_path))["train"]["sha256"]) == len(names)


@pytest.mark.parametrize(("names", "missing"), TORN.values(), ids=TORN)
def test_a_shard_that_is_missing_is_named(names: list[str], missing: str, tmp_path: Path) -> None:
    write_shards(tmp_path, names)
    for use in (lambda: load_rows(gsm8k_data(tmp_path)).splits, lambda: data_identity(gsm8k_data(tmp_path))):
        with pytest.raises(UserError, match=rf"{re.escape(missing)} is missing, so the data is not whole; copy or"):
            use()


@pytest.mark.parametrize("names", MIXED.values(), ids=MIXED)
def test_two_sets_in_one_folder_are_refused(names: list[str], tmp_path: Path) -> None:
    write_shards(tmp_path, names)
    with pytest.raises(UserError, match=r"more than once, or parts of two \(train.*; leave the files of one set there"):
        split_files(tmp_path, "train")


def test_saved_data_with_a_file_missing_or_a_state_without_it(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "data", rows(6), rows(2), shards=2)
    assert len(read_split(tmp_path / "data", "train", READING)) == 6
    state = tmp_path / "data" / "train" / "state.json"
    whole = json.loads(state.read_text())
    second = "data-00001-of-00002.arrow"
    state.write_text(json.dumps(whole | {"_data_files": whole["_data_files"][:1]}))
    with pytest.raises(UserError, match=rf"{second} is missing"):
        read_split(tmp_path / "data", "train", READING)
    state.write_text(json.dumps(whole))
    (state.parent / second).unlink()
    with pytest.raises(UserError, match=rf"{second} is missing"):
        read_split(tmp_path / "data", "train", READING)
    for damaged in ("{", "{}", "[]", '{"_data_files": []}', '{"_data_files": null}'):
        state.write_text(damaged)
        with pytest.raises(UserError, match=r"state\.json lists no data files; save the data with"):
            read_split(tmp_path / "data", "train", READING)


@pytest.mark.parametrize("name", ["with space", "a[b]", "a*b", "a?b", "a#b", "a::b", "%20", "{a}", "ä", "~", "a:b"])
@pytest.mark.parametrize("write", [write_lines, write_parquet, save_to_disk])
def test_a_folder_may_have_any_name(name: str, write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write(tmp_path / name / "data", rows(4), rows(2, what="test"))
    assert load_rows(gsm8k_data(folder)).splits == {
        "train": rows(3),
        "validation": rows(4)[3:],
        "test": rows(2, what="test"),
    }


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_parquet(tmp_path, rows(2), rows(2))
    twice = pa.table([pa.array(["a?"]), pa.array(["#### 5"]), pa.array(["b?"])], ["question", "answer", "question"])
    pq.write_table(twice, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet has the column 'question' 2 times; leave one"):
        load_rows(gsm8k_data(tmp_path))


def test_columns_that_nobody_reads_may_hold_anything(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_parquet(tmp_path, rows(2), rows(2))
    for number in (pa.array([2**63, 1], pa.uint64()), pa.array([None, None]), pa.array([[1], []])):
        columns = {name: pa.array([row[name] for row in rows(2)], pa.large_string()) for name in ("question", "answer")}
        pq.write_table(pa.table(columns | {"id": number}), tmp_path / "train.parquet")
        assert read_split(tmp_path, "train", READING) == rows(2)


def test_a_path_that_is_a_file_names_its_folder(tmp_path: Path) -> None:
    write_lines(tmp_path, rows(2), rows(2))
    for path in (tmp_path / "train.jsonl", tmp_path / "test.jsonl"):
        with pytest.raises(UserError, match=rf"data\.path {path} is a file; give its folder, {tmp_path}, which has to"):
            data_identity(gsm8k_data(path))


def test_a_relative_path_that_reads_like_a_hub_id_is_a_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "data", rows(2), rows(2))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data\.path data/train\.jsonl is a file; give its folder, data,"):
        data_identity(gsm8k_data(Path("data/train.jsonl")))


@pytest.mark.parametrize(
    "name", ["train.json", "train.csv", "train-00000-of-00002.jsonl", "train_00000_of_00002.parquet"]
)
def test_files_with_other_names_are_named_and_not_read(name: str, tmp_path: Path) -> None:
    write_lines(tmp_path, rows(2), rows(2))
    (tmp_path / "train.jsonl").rename(tmp_path / name)
    with pytest.raises(UserError, match=rf"has no train split \({re.escape(name)} there is none of these\); it needs"):
        load_rows(gsm8k_data(tmp_path))


def test_a_folder_in_place_of_a_file_is_no_split(tmp_path: Path) -> None:
    write_parquet(tmp_path, rows(2), rows(2))
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train.parquet").mkdir()
    with pytest.raises(UserError, match=r"has no train split \(train\.parquet there is none of these\)"):
        data_identity(gsm8k_data(tmp_path))

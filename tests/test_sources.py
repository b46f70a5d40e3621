"""Models and data from a directory: all formats give the same rows, and what is broken is told with what mends it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import errors

from kava.config import load_config
from kava.config.data import Gsm8kData
from kava.config.identity import data_identity, model_identity
from kava.config.models import ModelSettings
from kava.data.rows import load_rows
from kava.doctor.sources import sources
from kava.errors import UserError
from kava.hub import Repository, hub_fault
from kava.models.load import load_model_config, load_student, load_tokenizer
from kava.models.on_disk import tokenizer_fault

ROWS = {
    split: [{"question": f"{split} {n}?", "answer": f"It is\u2028{n}.\n#### {n}"} for n in range(count)]
    for split, count in (("train", 7), ("test", 3))
}


def as_json_lines(folder: Path) -> None:
    for split, rows in ROWS.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_parquet(folder: Path) -> None:
    for split, rows in ROWS.items():
        Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")


def as_shards_of_a_hub_repository(folder: Path) -> None:
    (folder / "main").mkdir()
    for split, rows in ROWS.items():
        for shard, part in enumerate((rows[:2], rows[2:])):
            Dataset.from_list(part).to_parquet(folder / "main" / f"{split}-{shard:05}-of-00002.parquet")


def saved_to_disk(folder: Path) -> None:
    DatasetDict({split: Dataset.from_list(rows) for split, rows in ROWS.items()}).save_to_disk(folder)


FORMATS = [as_json_lines, as_parquet, as_shards_of_a_hub_repository, saved_to_disk]


def data(folder: Path) -> Gsm8kData:
    return Gsm8kData(path=str(folder), validation=2)


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_rows_in_their_order(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    rows = load_rows(data(tmp_path)).splits
    assert rows == {"train": ROWS["train"][:5], "validation": ROWS["train"][5:], "test": ROWS["test"]}


@pytest.mark.parametrize("write", FORMATS)
def test_identity_is_that_of_the_files_wherever_they_lie(write: Callable[[Path], None], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    write(first)
    shutil.copytree(first, second)
    assert data_identity(data(first)) == data_identity(data(second))
    train = data_identity(data(second))["train"]
    for name in ("test.jsonl", "test.parquet"):
        (second / name).write_bytes(b"other questions")
    assert data_identity(data(second))["train"] == train, "a store depends on no test question"


def test_json_lines_keep_the_key_that_they_had(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_bytes(b"x")
    sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert data_identity(data(tmp_path)) == {
        "source": {"kind": "gsm8k"},
        "train": {"train": None, "validation": 2, "sha256": sha256},
        "test": {"limit": None, "sha256": sha256},
    }


def test_a_shard_that_was_not_copied_is_missed(tmp_path: Path) -> None:
    as_shards_of_a_hub_repository(tmp_path)
    (tmp_path / "main" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet is missing, so the data is not whole"):
        load_rows(data(tmp_path))


def test_data_that_cannot_be_read_names_the_file_and_the_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has no train split; it needs train\.jsonl and test\.jsonl, train-\*\.parquet"
    ):
        load_rows(data(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"cannot be read from train\.parquet .* copy or download the files again"):
        load_rows(data(tmp_path))
    as_json_lines(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"question": "no answer"}\n')
    with pytest.raises(
        UserError, match=r"train\.jsonl, line 8: expected a JSON object .*answer is missing; there is question"
    ):
        load_rows(data(tmp_path))
    as_json_lines(tmp_path)
    lines = [f'{{"question": "{n}", "answer": "#### {n}", "id": {n}}}' for n in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join([*lines, '{"question": "q", "answer": "#### 5", "id": "hard"}']))
    assert load_rows(data(tmp_path)).splits["validation"][-1]["question"] == "q"  # no type for `id`
    (tmp_path / "train.jsonl").write_bytes(b'{"question": "\xff", "answer": ""}')
    with pytest.raises(UserError, match=r"train\.jsonl is not UTF-8"):
        load_rows(data(tmp_path))
    as_json_lines(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    Dataset.from_dict({"question": ["a"], "answer": [5]}).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(
        UserError, match=r"test of .* cannot be read from test\.parquet \(question and answer must be text"
    ):
        load_rows(data(tmp_path))


def test_data_of_the_hub_that_is_not_here_says_how_to_get_it() -> None:
    with pytest.raises(
        UserError, match=r"data set org/rows at bbbb.* HF_HUB_OFFLINE is set: `unset HF_HUB_OFFLINE`, then `kava"
    ):
        load_rows(Gsm8kData(path="org/rows", revision="b" * 40))


def copy(model: Path, folder: Path, *without: str) -> ModelSettings:
    shutil.copytree(model, folder)
    for name in without:
        (folder / name).unlink()
    return ModelSettings(model=str(folder))


def student(source: ModelSettings) -> None:
    load_student(source, torch.device("cpu"))


def test_weights_that_are_missing_or_damaged_are_named(tinystories: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors missing; copy the file to"):
        student(copy(tinystories, tmp_path / "none", "model.safetensors"))
    source = copy(tinystories, tmp_path / "torn")
    os.truncate(tmp_path / "torn" / "model.safetensors", 100_000)
    with pytest.raises(
        UserError, match=r"model\.safetensors is damaged or was not copied to its end .*; copy the file to"
    ):
        student(source)
    source = copy(tinystories, tmp_path / "half")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "half" / "model.safetensors").rename(tmp_path / "half" / "model-00001-of-00002.safetensors")
    (tmp_path / "half" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}} | index))
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors missing"):
        student(source)


def test_pickled_weights_are_not_read_and_the_command_that_converts_them_is_told(
    tinystories: Path, tmp_path: Path
) -> None:
    source = copy(tinystories, tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").rename(tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only safetensors are read, since a pickle runs code; .*save_pretrained"):
        student(source)


def test_a_tokenizer_without_vocabulary_is_refused_and_not_empty(tinystories: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its tokenizer is missing or not whole: neither tokenizer\.json"):
        load_tokenizer(copy(tinystories, tmp_path / "empty", "tokenizer.json"))
    (tmp_path / "empty" / "vocab.json").write_text("{}")
    assert "vocab.json with merges.txt" in str(tokenizer_fault(tmp_path / "empty", "copy it"))
    (tmp_path / "empty" / "merges.txt").write_text("")
    assert tokenizer_fault(tmp_path / "empty", "copy it") is None


def test_code_of_a_repository_runs_only_where_the_configuration_says_so(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.Own"}})
    )
    (tmp_path / "configuration_own.py").write_text(
        "from transformers import PreTrainedConfig\n\n\nclass Own(PreTrainedConfig):\n    model_type = 'own'\n"
    )
    source = ModelSettings(model=str(tmp_path))
    with pytest.raises(UserError, match="set `trust_remote_code: true` beside its name"):
        load_model_config(source)
    assert type(load_model_config(source.model_copy(update={"trust_remote_code": True}))).__name__ == "Own"
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["org/other--code.Own", null]}}')
    with pytest.raises(UserError, match=r"from another repository \(org/other--code\.Own in auto_map\)"):
        load_model_config(source.model_copy(update={"trust_remote_code": True}))
    plain, own = (model_identity(ModelSettings(model=str(tmp_path), trust_remote_code=t)) for t in (False, True))
    assert list(plain) == ["files"], "keys are as they were before there was the setting"
    assert own["trust_remote_code"]
    assert "configuration_own.py" in own["files"]
    assert "configuration_own.py" not in plain["files"]


def test_what_the_hub_refuses_is_told_with_what_mends_it() -> None:
    repository = Repository("model", "org/name", "a" * 40)

    def told(error: Exception) -> str | None:
        try:
            raise OSError("as transformers wraps it") from error
        except OSError as wrapped:
            return hub_fault(repository, wrapped)

    response = SimpleNamespace(headers={}, request=None)
    gated = errors.GatedRepoError("no", response=response)
    assert "is gated: ask for access on https://huggingface.co/org/name, then log in with `hf auth login`" in str(
        told(gated)
    )
    assert "has no commit aaaa" in str(told(errors.RevisionNotFoundError("no", response=response)))
    assert "correct its name" in str(told(errors.RepositoryNotFoundError("no", response=response)))
    offline = told(errors.LocalEntryNotFoundError("no"))
    assert "is not whole on this machine, and HF_HUB_OFFLINE is set: `unset HF_HUB_OFFLINE`, then" in str(offline)
    assert told(ValueError("of something else")) is None


def test_the_doctor_downloads_no_data_to_look_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object) -> None:
        raise AssertionError("the doctor downloads nothing")

    monkeypatch.setattr("kava.hub.download", download)
    hub = {"kind": "gsm8k", "path": "openai/gsm8k", "revision": "c" * 40}
    lines = {check.name: check for check in sources(load_config(None, {"data": hub}), "kava fetch").checks}
    assert lines["data"].status == "warning"
    assert lines["pair"].status == "ok"

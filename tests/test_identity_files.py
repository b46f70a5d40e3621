"""What a change of a file, of a format or of the code runs again: exactly what depends on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from job_fixtures import (
    ARMS,
    DRAWN,
    EVERYTHING,
    PLAIN,
    PRETRAINED,
    READ_KV,
    TOKENIZER,
    WEIGHTS,
    all_jobs,
    of_arm,
    reruns,
    settings_of_a_run,  # noqa: F401
)

from kava.config import Config, Jobs, jobs
from kava.config.data import DemoData, TextData
from kava.config.identity import model_identity
from kava.config.load import merge
from kava.config.models import ModelSettings

CHAT = {"chat": {}}
TEXT = {"data": {"kind": "text"}}  # whose rows may be messages
OWN_CODE = {"teacher": {"trust_remote_code": True}, "student": {"trust_remote_code": True}}
# What the teacher finds likeliest is what every other model is compared with.
JUDGED = of_arm(PRETRAINED, DRAWN, PLAIN, stages=("evaluate",)) | {"teacher", "student_base"}
OF_TEACHER = READ_KV | {"extract", "bench"} | JUDGED
OF_STUDENT = ARMS | {"student_base"}


@pytest.mark.parametrize(
    ("model", "file", "context", "expected"),
    [
        *(("teacher", file, {}, OF_TEACHER) for file in WEIGHTS),
        *(("teacher", file, {}, EVERYTHING) for file in TOKENIZER),
        *(("student", file, {}, OF_STUDENT) for file in (*WEIGHTS, *TOKENIZER, "generation_config.json")),
        ("teacher", "generation_config.json", {}, JUDGED),
        ("teacher", "chat_template.jinja", {}, set()),
        ("teacher", "chat_template.jinja", CHAT, EVERYTHING),
        ("teacher", "chat_template.jinja", TEXT, EVERYTHING),
        ("teacher", "own_code.py", {}, set()),
        ("teacher", "own_code.py", OWN_CODE, EVERYTHING),
        ("student", "own_code.py", OWN_CODE, OF_STUDENT),
        *((model, "README.md", CHAT | OWN_CODE, set()) for model in ("teacher", "student")),
        *(("data", f"{split}.jsonl", {}, EVERYTHING - kept) for split, kept in
          (("train", set()), ("test", {"extract", "bench"}))),
    ],
)  # fmt: skip
def test_a_changed_file_runs_exactly_what_reads_it(
    model: str, file: str, context: dict[str, Any], expected: set[str], base: dict[str, Any]
) -> None:
    context = {"data": base["data"] | context["data"]} if "data" in context else context
    config = Config.model_validate(merge(base, context))
    path = Path(base["teacher"]["model"]).parent / model / file
    before = all_jobs(config)
    text = path.read_text()
    path.write_text(text[::-1])  # of the same size
    try:
        after = all_jobs(config)
    finally:
        path.write_text(text)
    assert reruns(before, after) - {"report"} == expected


def test_a_model_is_the_same_wherever_it_lies(base: dict[str, Any], tmp_path: Path) -> None:
    path = Path(base["teacher"]["model"])
    path_copy = tmp_path / "elsewhere"
    path_copy.mkdir()
    for file in path.iterdir():
        (path_copy / file.name).write_bytes(file.read_bytes())
    assert model_identity(ModelSettings(model=str(path))) == model_identity(ModelSettings(model=str(path_copy)))


def test_a_large_file_is_hashed_again_only_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    size = 17 << 20

    def hash_of(folder: str, last: bytes, changed: int) -> str:
        file = tmp_path / folder / "model.safetensors"
        file.parent.mkdir(exist_ok=True)
        (file.parent / "config.json").write_text("{}")
        with file.open("wb") as stream:
            stream.truncate(size - 1)
            stream.seek(size - 1)
            stream.write(last)
        os.utime(file, ns=(changed, changed))
        return model_identity(ModelSettings(model=str(file.parent)))["files"]["model.safetensors"]

    first = hash_of("one", b"1", 10**18)
    assert hash_of("one", b"2", 10**18 + 1) != first
    assert hash_of("two", b"3", 10**18) != first
    monkeypatch.setattr("kava.config.identity.sha256_file", lambda path: pytest.fail(f"{path} was read again"))
    model_identity(ModelSettings(model=str(tmp_path / "two")), ("*.safetensors",))


def test_rows_of_every_parquet_file_are_in_the_key(base: dict[str, Any], tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        (tmp_path / f"{name}.parquet").write_text(name)
    config = Config.model_validate(merge(base, {"data": {"path": str(tmp_path)}}))
    before = Jobs(config).extract.params
    (tmp_path / "train-00001-of-00002.parquet").write_text("other rows")
    assert Jobs(config).extract.params != before


@pytest.mark.parametrize(("data", "name"), [(DemoData, "generator"), (TextData, "version")])
def test_another_version_of_a_task_is_other_rows(
    data: type[DemoData] | type[TextData], name: str, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"path": base["data"]["path"]} if data is TextData else {}
    config = Config.model_validate(base | {"data": {"kind": data.model_fields["kind"].default} | settings})
    monkeypatch.setattr(data, name, "anew")
    assert f'"{name}":"anew"' in Jobs(config).tokenize.params


@pytest.mark.parametrize(
    ("what", "value", "expected"),
    [
        ("TOKENS_FORMAT", 99, EVERYTHING),
        ("STORE_FORMAT", 99, READ_KV | {"extract", "bench"}),
        ("BENCH_FORMAT", 99, {"bench"}),
        ("code_digest", lambda _stage: "other code", ARMS),
    ],
)
def test_another_format_and_other_code_run_again_what_depends_on_them(
    what: str, value: Any, expected: set[str], base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate(base)
    before = all_jobs(config)
    monkeypatch.setattr(jobs, what, value)
    assert reruns(before, all_jobs(config)) - {"report"} == expected

"""Answers end where examples end: not at a token that right answers hold, and never not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo.data import rows, write_lines
from zoo.models import change_config

from kava.cli import main
from kava.config.load import REPOSITORY
from kava.config.models import ModelSettings
from kava.evaluation.harness import answering
from kava.models.load import load_ends, load_for_evaluation, load_tokenizer, second_model_allowed

MARK = 292  # `####` of the demo's tokenizer


def teacher(folder: Path, ends: Any, in_generation_config: bool) -> Path:
    shutil.copytree(REPOSITORY / "kava" / "demo" / "teacher", folder)
    change_config(folder, eos_token_id=None if in_generation_config else ends)
    if in_generation_config:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    else:
        (folder / "generation_config.json").unlink()
    return folder


def tokenize(tmp_path: Path, *settings: str) -> int:
    own = ["data={train: 8, validation: 2, test: 2}", f"cache_dir={tmp_path / 'cache'}", *settings]
    return main(["tokenize", "--preset", "demo", *(word for setting in own for word in ("--set", setting))])


@pytest.mark.parametrize("in_generation_config", [True, False])
@pytest.mark.parametrize("ends", [MARK, [0, MARK]])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_model_that_stops_within_right_answers(
    role: str, ends: Any, in_generation_config: bool, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = teacher(tmp_path / "model", ends, in_generation_config)
    assert tokenize(tmp_path, f"{role}={{model: {folder}}}") == 1
    assert f"the {role} {folder} ends its answers at '####' (token 292), which stands within 8 of 8" in (
        capsys.readouterr().err
    )


def test_answers_that_spell_the_end_token_out(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "data", rows(4, "so <|endoftext|> it is\n#### 5"), rows(2, what="test"))
    assert tokenize(tmp_path, f"data={{kind: gsm8k, path: {tmp_path / 'data'}, validation: 1}}") == 1
    assert "ends its answers at '<|endoftext|>' (token 0)" in capsys.readouterr().err


@pytest.mark.parametrize(("ends", "all_ends"), [(None, [0]), (0, [0]), ([5], [5, 0]), (10**6, [10**6, 0])])
def test_the_end_of_examples_ends_answers(ends: Any, all_ends: list[int], tmp_path: Path) -> None:
    source = ModelSettings(model=str(teacher(tmp_path / "model", ends, in_generation_config=False)))
    tokenizer = load_tokenizer(source)
    assert list(load_ends(source, tokenizer)) == all_ends
    with second_model_allowed():
        model = load_for_evaluation(source, torch.device("cpu"))
    assert answering(model, tokenizer, 1).model.generation_config.eos_token_id == all_ends

"""A checkpoint that somebody quantised already is refused, whatever the configuration asks for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from zoo.models import change_config, student, teacher, write_model

from kava.cli import main
from kava.config.load import REPOSITORY
from kava.errors import UserError
from kava.models.load import check_model, load_student, load_teacher

CPU = torch.device("cpu")

QUANTISED: dict[str, tuple[Any, str]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
    "awq": ({"quant_method": "awq", "bits": 4}, "AWQ"),
    "fp8": ({"quant_method": "fp8"}, "FP8"),
    "mxfp4": ({"quant_method": "mxfp4"}, "MXFP4"),
    "compressed": ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
    "gguf": ({"quant_method": "gguf"}, "GGUF"),
    "fp4": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes, fp4"),
    "nf4": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes, nf4"),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, int8"),
    "another": ({"quant_method": "hqq"}, "hqq"),
    "no method": ({"bits": 4}, "a quantization_config without quant_method"),
    "a word": ("gptq", "quantization_config 'gptq'"),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_a_checkpoint_quantised_already_is_refused_as_teacher_and_as_student(name: str, tmp_path: Path) -> None:
    settings, method = QUANTISED[name]
    folder = change_config(write_model(tmp_path / "model"), quantization_config=settings)
    for asked in ("nf4", "int8", "none"):
        with pytest.raises(UserError) as refused:
            load_teacher(teacher(folder, quantization=asked), CPU)
        assert f"is quantised already ({method}), and would stay so whatever teacher.quantization ({asked})" in str(
            refused.value
        )
    with pytest.raises(UserError) as refused:
        load_student(student(folder), CPU)
    assert f"is quantised already ({method}), and a student's own weights are trained" in str(refused.value)
    change_config(folder, quantization_config=None)
    load_student(student(folder), CPU)


def test_the_older_key_of_compressed_tensors_counts(tmp_path: Path) -> None:
    folder = change_config(write_model(tmp_path), compression_config={"quant_method": "compressed-tensors"})
    with pytest.raises(UserError, match=r"quantised already \(compressed-tensors\)"):
        check_model(student(folder))


def test_a_quantised_student_stops_at_the_start_of_training(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    folder = change_config(write_model(tmp_path / "s"), quantization_config={"load_in_4bit": True})
    for command in (["tokenize"], ["plan"], ["doctor"], ["init-student", "--like", str(folder), "--output", "x"]):
        options = [] if command[0] == "init-student" else ["--set", f"student.model={folder}"]
        assert main([*command, *options]) == 1
        said = capsys.readouterr()
        assert "is quantised already (bitsandbytes, fp4)" in said.out + said.err
        assert "Traceback" not in said.out + said.err

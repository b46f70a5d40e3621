"""Models without a KV cache that KAVA can read: one sentence from every command, and status 1."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from transformers import AutoConfig
from zoo.models import change_config, write_config, write_model

from kava.cli import main
from kava.config.load import REPOSITORY
from kava.config.models import ModelSettings
from kava.errors import UserError
from kava.models.capture import geometry
from kava.models.families import unreadable_cache
from kava.models.load import check_model, load_model_config, load_student

TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
FAMILIES = {
    "mamba": "layers without keys and values of all tokens",
    "mamba2": "layers without keys and values of all tokens",
    "falcon_h1": "layers without keys and values of all tokens",
    "jamba": "layers without keys and values of all tokens",
    "qwen3_next": "layers without keys and values of all tokens",
    "zamba2": "layers without keys and values of all tokens",
    "rwkv": "has no num_attention_heads",
    "t5": "is an encoder with a decoder",
    "bart": "is an encoder with a decoder",
    "whisper": "is an encoder with a decoder",
    "bert": "is an encoder, in which every token attends to all others",
    "roberta": "is an encoder, in which every token attends to all others",
    "modernbert": "is no causal language model",
    "vit": "is no causal language model",
    "clip": "is made of several models",
    "gemma3": "is made of several models",
    "deepseek_v2": "multi-head latent attention",
    "deepseek_v3": "multi-head latent attention",
    "minicpm3": "multi-head latent attention",
    "gemma3n_text": "layers without keys and values of all tokens",
    "deepseek_v4": "layers of kinds that no common cache holds",
    "falcon": r"keeps keys of shape \(1, 1, 2, 64\)",
}
FILES: dict[str, tuple[Any, str | None, str]] = {
    "an unknown type": ({"model_type": "made-up"}, None, "model type `made-up` but Transformers does not recognize"),
    "no type": ({"num_hidden_layers": 2}, None, "names no model_type"),
    "a number for a type": ({"model_type": 7}, None, "names no model_type"),
    "no JSON": (None, "{model_type: llama", "cannot be read as JSON"),
    "nothing": (None, "", "cannot be read as JSON"),
    "a list": ([{"model_type": "llama"}], None, "is no JSON object"),
    "a word": ("llama", None, "is no JSON object"),
    "no layers": ({"model_type": "llama", "num_hidden_layers": 0}, None, "num_hidden_layers 0 in its config.json"),
    "layers in words": ({"model_type": "llama", "num_hidden_layers": "two"}, None, "expected int, got str"),
    "no heads": ({"model_type": "llama", "num_attention_heads": 0}, None, "cannot load the configuration"),
    "another RoPE": (
        {"model_type": "llama", "rope_parameters": {"rope_type": "made-up", "rope_theta": 1e4}}, None,
        "no model can be made of the config.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_without_such_a_cache_is_refused_by_its_settings(family: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path, AutoConfig.for_model(family).to_dict())
    with pytest.raises(UserError, match=f"KV of {tmp_path} cannot be read: model type '{family}' .*{FAMILIES[family]}"):
        check_model(ModelSettings(model=str(folder)))


@pytest.mark.parametrize("name", FILES)
def test_settings_that_are_none_are_refused(name: str, tmp_path: Path) -> None:
    settings, text, message = FILES[name]
    with pytest.raises(UserError, match=message):
        check_model(ModelSettings(model=str(write_config(tmp_path, settings, text))))


def test_settings_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (write_config(tmp_path, {}) / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        check_model(ModelSettings(model=str(tmp_path)))


@pytest.mark.parametrize("family", ["mamba", "t5", "bert", "deepseek_v3", "falcon", "made-up", "list"])
def test_every_command_says_it_in_one_sentence(family: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(REPOSITORY)
    settings = {"made-up": {"model_type": "made-up"}, "list": []}
    folder = write_config(tmp_path / "model", settings.get(family) or (
        [] if family == "list" else AutoConfig.for_model(family).to_dict()
    ))  # fmt: skip
    (folder / "model.safetensors").write_bytes(
        (REPOSITORY / "kava" / "demo" / "student" / "model.safetensors").read_bytes()
    )
    for command in ("doctor", "plan", "tokenize"):
        options = ["--set", f"teacher.model={folder}", "--set", f"cache_dir={tmp_path / 'cache'}"]
        assert main([command, *options]) == 1
        said = capsys.readouterr()
        failed = [line for line in (said.out + said.err).splitlines() if "error:" in line or line.startswith("fail")]
        assert len([line for line in failed if str(folder) in line]) == 1, failed
        assert "Traceback" not in said.out + said.err


def test_an_extraction_that_was_given_tokens_says_it_too(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--configfile", str(REPOSITORY / "config.yaml")]
    options += ["--set", "data.train=8", "--set", "data.validation=2", "--set", "data.test=2"]
    assert main(["tokenize", *options]) == 0
    (tokens,) = tmp_path.glob("results/tokens/*/manifest.json")
    for family in ("mamba", "t5", "bert", "deepseek_v3", "jamba"):
        folder = write_config(tmp_path / family, AutoConfig.for_model(family).to_dict())
        capsys.readouterr()
        assert main(["extract", *options, "--set", f"teacher.model={folder}", "--input", f"tokens={tokens}"]) == 1
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
        assert f"model type '{family}'" in line


def test_a_profile_of_an_unreadable_student_says_it_too(tmp_path: Path) -> None:
    folder = write_config(tmp_path, AutoConfig.for_model("mamba", **TINY).to_dict())
    with pytest.raises(UserError, match=r"KV of .* cannot be read"):
        load_student(ModelSettings(model=str(folder)), torch.device("cpu"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2", "mixtral", "gpt_neox", "starcoder2"])
def test_families_with_such_a_cache_are_not_refused(family: str, tmp_path: Path) -> None:
    changes = {"num_key_value_heads": 4} if family == "gpt_neox" else {}
    folder = write_model(tmp_path, family, **changes)
    source = ModelSettings(model=str(folder))
    assert check_model(source), "known without its weights"
    assert geometry(load_model_config(source)).layers == 1
    load_student(source, torch.device("cpu"))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_cache_of_another_shape_is_seen_by_running_two_tokens(device: str) -> None:
    model = tiny_model("llama").to(device)
    shape = geometry(model.config)
    assert unreadable_cache(model, shape) is None
    for name, value in shape.to_dict().items():
        assert unreadable_cache(model, replace(shape, **{name: value + 1})) is not None


def test_a_model_that_lets_itself_be_run_only_with_weights_is_judged_when_it_has_them(tmp_path, monkeypatch) -> None:
    folder = write_model(tmp_path, "olmo2")
    model = type(load_student(ModelSettings(model=str(folder)), torch.device("cpu"))).base_model_prefix
    assert model == "model"

    from transformers.models.olmo2.modeling_olmo2 import Olmo2Model

    whole = Olmo2Model.forward

    def forward(self, **inputs):
        if self.device.type == "meta":
            raise RuntimeError("needs data")
        output = whole(self, **inputs)
        output.past_key_values.layers.pop()
        return output

    monkeypatch.setattr(Olmo2Model, "forward", forward)
    change_config(folder, initializer_range=0.03)  # other settings than those that were looked at above
    assert not check_model(ModelSettings(model=str(folder)))
    with pytest.raises(UserError, match="keeps KV of 0 of 1 layers"):
        load_student(ModelSettings(model=str(folder)), torch.device("cpu"))
    assert json.loads((folder / "config.json").read_text())["initializer_range"] == 0.03

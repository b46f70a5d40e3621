"""A checkpoint that is not its model is refused by name, from its headers and by the report of a load."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from zoo.models import (
    as_awq,
    as_bitsandbytes,
    as_compressed_tensors,
    as_float8_alone,
    as_fp8,
    as_gptq,
    as_integers,
    as_lora,
    change_config,
    change_tensors,
    in_shards,
    student,
    teacher,
    with_prefix,
    with_tensors,
    without,
    write_config,
    write_model,
)

from kava.cli import main
from kava.config import load_config
from kava.config.load import REPOSITORY
from kava.config.models import ModelSettings
from kava.doctor.sources import sources
from kava.errors import UserError
from kava.models import load as models
from kava.models.load import check_model, load_for_evaluation, load_student, load_teacher, second_model_allowed

CPU = torch.device("cpu")
CONFIG = str(REPOSITORY / "config.yaml")

Build = Callable[[Path], Path]


def of_tensors(change: Callable[..., Any], family: str = "llama", **settings: Any) -> Build:
    return lambda folder: change_tensors(write_model(folder, family, **settings), change)


def with_other_shape(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"model.embed_tokens.weight": torch.zeros(500, 32)}


def with_more_layers(folder: Path) -> Path:
    return change_config(write_model(folder, num_hidden_layers=2), num_hidden_layers=1)


def in_two_forms(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {
        name.removeprefix("model."): 2 * tensor for name, tensor in tensors.items() if name.startswith("model.layers")
    }


def in_two_shards(folder: Path) -> Path:
    first, second = sorted(in_shards(write_model(folder)).glob("model-*"))
    save_file(load_file(second) | {name: 2 * t for name, t in load_file(first).items()}, second, {"format": "pt"})
    return folder


HOLES: dict[str, tuple[Build, str]] = {
    "gptq": (of_tensors(as_gptq), r"lack 7 tensors .* made up .*down_proj\.weight.* and 4 more.*those of GPTQ or AWQ"),
    "awq": (of_tensors(as_awq), r"hold 21 tensors .*qweight.*those of GPTQ or AWQ"),
    "fp8": (of_tensors(as_fp8), r"weight_scale_inv.*those of FP8"),
    "compressed-tensors": (of_tensors(as_compressed_tensors), r"weight_packed.*those of compressed-tensors"),
    "bitsandbytes": (of_tensors(as_bitsandbytes), r"another shape.*absmax.*those of bitsandbytes"),
    "lora": (of_tensors(as_lora), r"those of an adapter: merge it"),
    "a layer": (of_tensors(without("layers.1."), num_hidden_layers=2), r"lack 9 tensors .*made up \(model\.layers\.1"),
    "one tensor": (of_tensors(without("k_proj")), r"lack 1 tensor .*\(model\.layers\.0\.self_attn\.k_proj\.weight\)"),
    "a bias": (of_tensors(without("k_proj.bias"), "qwen2"), r"lack 1 tensor .*k_proj\.bias"),
    "a part of gpt2": (of_tensors(without("c_fc.weight"), "gpt2"), r"lack 1 tensor .*h\.0\.mlp\.c_fc\.weight"),
    "an expert": (of_tensors(without("experts.1.w1"), "mixtral"), r"another shape|tensors that are merged"),
    "a foreign prefix": (of_tensors(with_prefix("module.")), r"lack 12 .* hold 12 .*begin with 'module\.'"),
    "a compiled model": (of_tensors(with_prefix("_orig_mod.")), r"begin with '_orig_mod\.'"),
    "a head": (of_tensors(without("lm_head")), r"lack 1 tensor .*lm_head\.weight.*saved without its head"),
    "a shape": (of_tensors(with_other_shape), r"embed_tokens\.weight is \[500, 32\] and not \[417, 32\]"),
    "more layers": (with_more_layers, r"hold 9 tensors that no part .*layers\.1\..*more layers than its config\.json"),
    "biases": (of_tensors(with_tensors(model__layers__0__self_attn__q_proj__bias=torch.ones(32))), r"switches off"),
    "two forms of a name": (of_tensors(in_two_forms), r"hold 9 tensors twice, with and without the prefix 'model\.'"),
    "two shards with a name": (in_two_shards, r"shards hold \d+ tensors more than once"),
    "a value head": (of_tensors(with_tensors(v_head__weight=torch.zeros(1, 32))), r"hold 1 tensor .*v_head\.weight"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def models_of_other_tests() -> Iterator[None]:
    with second_model_allowed():
        yield


@pytest.mark.parametrize("name", HOLES)
def test_what_would_be_made_up_is_named_by_headers_and_by_load(name: str, monkeypatch, tmp_path: Path) -> None:
    build, message = HOLES[name]
    folder = build(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        check_model(teacher(folder))
    # The report of the load stands alone where headers were not at hand: a download.
    monkeypatch.setattr(models, "headers_fault", lambda *_: None)
    for load in (lambda: load_teacher(teacher(folder), CPU), lambda: load_student(student(folder), CPU),
                 lambda: load_for_evaluation(student(folder), CPU)):  # fmt: skip
        with pytest.raises(UserError, match=message):
            load()


@pytest.mark.parametrize(("change", "dtype"), [(as_float8_alone, "F8_E4M3"), (as_integers, "I8")])
def test_codes_are_not_taken_for_weights(change: Callable[..., Any], dtype: str, monkeypatch, tmp_path: Path) -> None:
    folder = change_tensors(write_model(tmp_path), change)
    with pytest.raises(UserError, match=f"hold weights as {dtype} .*only F64, F32, F16, BF16 are read"):
        check_model(student(folder))
    monkeypatch.setattr(models, "headers_fault", lambda *_: None)
    with pytest.raises(UserError, match=f"hold weights as {dtype}"):
        load_student(student(folder), CPU)


@pytest.mark.parametrize("weights", ["[]", "{}", '{"a": 1}', '{"a": ["b"]}', '{"a": 1, "b": "c"}'])
def test_an_index_that_names_no_files(weights: str, tmp_path: Path) -> None:
    (in_shards(write_model(tmp_path)) / "model.safetensors.index.json").write_text(f'{{"weight_map": {weights}}}')
    with pytest.raises(UserError, match=r"index\.json is not whole; copy the file"):
        load_student(student(tmp_path), CPU)


@pytest.mark.parametrize("index", ["[]", "{", "{}"])
def test_an_index_that_is_none(index: str, tmp_path: Path) -> None:
    (in_shards(write_model(tmp_path)) / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"index\.json is not whole; copy the file"):
        load_student(student(tmp_path), CPU)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"eos_token_id": "x"}', '{"eos_token_id": [1, "x"]}'])
def test_generation_settings_that_name_no_end(text: str, tmp_path: Path) -> None:
    (write_model(tmp_path) / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"its generation_config\.json .*; copy or download it again, or remove it"):
        check_model(teacher(tmp_path))


def test_an_index_that_names_what_no_shard_holds(tmp_path: Path) -> None:
    folder = in_shards(write_model(tmp_path), "model.norm.weight")
    with pytest.raises(UserError, match=r"names 1 tensor that no shard holds: model\.norm\.weight; copy or download"):
        check_model(teacher(folder))


def _old_masks(name: str, **more: torch.Tensor) -> Callable[..., Any]:
    masks = {f"{name}.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool), f"{name}.masked_bias": torch.tensor(-1e4)}
    return lambda tensors: tensors | masks | more


HARMLESS: dict[str, Build] = {
    "llama": write_model,
    "mistral": lambda folder: write_model(folder, "mistral"),
    "qwen2": lambda folder: write_model(folder, "qwen2"),
    "qwen3": lambda folder: write_model(folder, "qwen3"),
    "gpt2": lambda folder: write_model(folder, "gpt2"),
    "merged experts": lambda folder: write_model(folder, "mixtral"),
    "shards": lambda folder: in_shards(write_model(folder)),
    "a tied head": lambda folder: write_model(folder, tie_word_embeddings=True),
    "a tied head that is stored": of_tensors(
        lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        tie_word_embeddings=True,
    ),
    "no prefix": of_tensors(lambda tensors: {name.removeprefix("model."): t for name, t in tensors.items()}),
    "inv_freq": of_tensors(with_tensors(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))),
    "masks of gpt2": of_tensors(_old_masks("transformer.h.0.attn"), "gpt2"),
    "masks of gpt2's body": of_tensors(
        lambda tensors: {
            name.removeprefix("transformer."): t for name, t in _old_masks("h.0.attn")(tensors).items()
        },
        "gpt2",
    ),
    "masks of gpt_neox": of_tensors(
        _old_masks("gpt_neox.layers.0.attention", **{"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2)}),
        "gpt_neox",
        num_key_value_heads=4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_derived_or_tied_or_named_otherwise_loads(name: str, tmp_path: Path, caplog) -> None:
    folder = HARMLESS[name](tmp_path)
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert check_model(teacher(folder))
    model = load_student(student(folder), CPU)
    loaded = {key.rpartition("model.")[2]: tensor for key, tensor in model.state_dict().items()}
    norms = [key for key in stored if key.endswith("layernorm.weight")]
    assert all(torch.equal(stored[key], loaded[key.rpartition("model.")[2]]) for key in norms)
    assert "LOAD REPORT" not in caplog.text


def test_the_models_that_come_with_kava_load(tinystories: Path) -> None:
    for name in ("kava:teacher", "kava:student", str(tinystories)):
        assert check_model(ModelSettings(model=name, revision=None))


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    adapter = json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"})
    whole, alone = write_model(tmp_path / "whole"), tmp_path / "alone"
    (whole / "adapter_config.json").write_text(adapter)
    # transformers would load org/base in its place
    with pytest.raises(UserError, match=r"is an adapter .* merge it into org/base with peft's"):
        load_student(student(whole), CPU)
    alone.mkdir()
    (alone / "adapter_config.json").write_text(adapter)
    with pytest.raises(UserError, match="holds an adapter and no model; merge it"):
        load_student(student(alone), CPU)


def test_gguf_files_are_no_safetensors(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "model-Q4_K_M.gguf")
    with pytest.raises(UserError, match=r"name the file in place of its directory, .*/model-Q4_K_M\.gguf"):
        check_model(teacher(folder))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_doctor_says_it_of_both_models(role: str, tmp_path: Path) -> None:
    holed = change_tensors(write_model(tmp_path / "holed"), without("k_proj"))
    quantised = change_config(write_model(tmp_path / "quantised"), quantization_config={"quant_method": "gptq"})
    for folder, message in ((holed, "lack 1 tensor"), (quantised, "is quantised already (GPTQ)")):
        checks = sources(load_config(None, {"preset": "demo", role: {"model": str(folder)}}), "kava fetch").checks
        (line,) = (check for check in checks if check.name == role)
        assert line.status == "fail"
        assert message in line.message
        assert line.fix


def test_tokenize_and_extract_stop_before_they_compute(capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--configfile", CONFIG, "--set", "data.train=8", "--set", "data.validation=2", "--set", "data.test=2"]
    assert main(["tokenize", *options]) == 0
    (tokens,) = tmp_path.glob("results/tokens/*/manifest.json")
    for role, name in (("teacher", "a head"), ("student", "gptq")):
        folder = HOLES[name][0](tmp_path / role)
        bad = [*options, "--set", f"{role}.model={folder}"]
        capsys.readouterr()
        for command in (["tokenize"], ["extract", "--input", f"tokens={tokens}"]):
            assert main([*command, *bad]) == 1
            lines = capsys.readouterr().err.splitlines()
            (line,) = (line for line in lines if "error:" in line)
            assert f"cannot load the model {folder}: its files lack" in line
    assert not list(tmp_path.glob("results/teacher_kv/*/manifest.json")), "nothing is sealed"


def test_headers_of_a_real_size_take_well_under_a_second(tmp_path: Path) -> None:
    """Qwen2.5-1.5B in names and shapes: 338 tensors, 3 GB of zeros that no disk holds."""
    settings = {
        "model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    }  # fmt: skip
    folder = write_config(tmp_path, settings)
    config = models.load_model_config(student(folder))
    shapes = {n: t.shape for n, t in models._empty(config, "it").state_dict().items() if n != "lm_head.weight"}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    started = time.process_time()
    assert check_model(teacher(folder))
    assert time.process_time() - started < 1


def test_a_bias_that_the_model_has_no_place_for_is_not_taken_for_a_mask(tmp_path: Path) -> None:
    folder = of_tensors(with_tensors(model__layers__0__attention__bias=torch.ones(4)))(tmp_path)
    with pytest.raises(
        UserError, match=r"1 tensor that no part of the model reads \(model\.layers\.0\.attention\.bias"
    ):
        check_model(teacher(folder))

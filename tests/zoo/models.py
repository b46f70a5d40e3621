"""Checkpoints as users bring them: whole, with holes, quantised by others, of families without a KV cache.

A model has one layer, two KV heads and the demo's tokenizer, so that every stage can be asked to run it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from kava.config.load import REPOSITORY
from kava.config.models import ModelSettings, Teacher

Tensors = dict[str, Tensor]
DEMO_TOKENS = 417
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def give_tokenizer(folder: Path) -> Path:
    """Put the demo's tokenizer into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        (folder / name).write_bytes((REPOSITORY / "kava" / "demo" / "teacher" / name).read_bytes())
    return folder


def write_model(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A whole checkpoint with random weights that are not those of a fresh model."""
    shape: dict[str, Any] = {"vocab_size": DEMO_TOKENS, "eos_token_id": 0, "bos_token_id": None}
    shape |= {"n_layer": 1, "n_positions": 1024} if family == "gpt2" else {
        "num_hidden_layers": 1, "max_position_embeddings": 1024, "tie_word_embeddings": False
    }  # fmt: skip
    tiny_model(family, **(shape | changes)).save_pretrained(folder)
    return give_tokenizer(folder)


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Write the tensors of a checkpoint anew."""
    file = folder / "model.safetensors"
    save_file({name: t.contiguous() for name, t in change(load_file(file)).items()}, file, {"format": "pt"})
    return folder


def change_config(folder: Path, **changes: Any) -> Path:
    """Write other settings into `config.json`; a value of None takes one out."""
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return folder


def without(part: str) -> Callable[[Tensors], Tensors]:
    """The tensors whose names do not hold a part."""
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def with_prefix(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def with_tensors(**made: Tensor) -> Callable[[Tensors], Tensors]:
    """More tensors, by names in which `__` stands for a dot."""
    return lambda tensors: tensors | {name.replace("__", "."): tensor for name, tensor in made.items()}


def as_gptq(tensors: Tensors) -> Tensors:
    """Each projection as the four tensors of GPTQ; AWQ's are the same without `g_idx`."""
    return _each_projection(
        tensors,
        lambda rows, columns: {
            "qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
            "qzeros": torch.zeros(1, max(1, rows // 8), dtype=torch.int32),
            "scales": torch.ones(1, rows, dtype=torch.float16),
            "g_idx": torch.zeros(columns, dtype=torch.int32),
        },
    )


def as_awq(tensors: Tensors) -> Tensors:
    return without("g_idx")(as_gptq(tensors))


def as_fp8(tensors: Tensors) -> Tensors:
    """Each projection in float8 with the inverse of its scale, as DeepSeek and Qwen publish them."""
    return _each_projection(
        tensors,
        lambda rows, columns: {
            "weight": torch.ones(rows, columns).to(torch.float8_e4m3fn),
            "weight_scale_inv": torch.ones(1, 1),
        },
    )


def as_compressed_tensors(tensors: Tensors) -> Tensors:
    return _each_projection(
        tensors,
        lambda rows, columns: {
            "weight_packed": torch.zeros(rows, columns // 8, dtype=torch.int32),
            "weight_scale": torch.ones(rows, 1),
            "weight_shape": torch.tensor([rows, columns]),
        },
    )


def as_bitsandbytes(tensors: Tensors) -> Tensors:
    return _each_projection(
        tensors,
        lambda rows, columns: {
            "weight": torch.zeros(rows * columns // 2, 1, dtype=torch.uint8),
            "weight.absmax": torch.ones(rows * columns // 64),
            "weight.quant_map": torch.ones(16),
            "weight.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
        },
    )


def as_float8_alone(tensors: Tensors) -> Tensors:
    """Weights rounded to float8, without any scale."""
    return {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}


def as_integers(tensors: Tensors) -> Tensors:
    """Weights of int8 whose scales are somewhere else."""
    return _each_projection(tensors, lambda rows, columns: {"weight": torch.ones(rows, columns, dtype=torch.int8)})


def as_lora(tensors: Tensors) -> Tensors:
    """Adapters beside the layers that they are put upon, as a wrapper saves them."""
    made = _each_projection(
        tensors,
        lambda rows, columns: {
            "base_layer.weight": torch.zeros(rows, columns),
            "lora_A.default.weight": torch.zeros(2, columns),
            "lora_B.default.weight": torch.zeros(rows, 2),
        },
    )
    return with_prefix("base_model.model.")(made)


def in_shards(folder: Path, named_only_by_the_index: str | None = None) -> Path:
    """Split a checkpoint into two shards and an index, which may name a tensor that no shard holds."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {name: files[n % 2] for n, name in enumerate(names)}
    for file in files:
        held = {n: tensors[n] for n in names if index[n] == file and n != named_only_by_the_index}
        save_file(held, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def write_config(folder: Path, settings: Any, text: str | None = None) -> Path:
    """A folder with a `config.json` and a tokenizer, and no weights."""
    give_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(settings) if text is None else text)
    return folder


def _each_projection(tensors: Tensors, make: Callable[[int, int], Tensors]) -> Tensors:
    made: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            made |= {f"{name.removesuffix('weight')}{end}": value for end, value in make(*tensor.shape).items()}
        else:
            made[name] = tensor
    return made


def teacher(folder: Path, **changes: Any) -> Teacher:
    """Settings of a folder's model as teacher."""
    return Teacher(**{"model": str(folder), "quantization": "none", "dtype": "float32"} | changes)


def student(folder: Path) -> ModelSettings:
    """Settings of a folder's model as student."""
    return ModelSettings(model=str(folder))

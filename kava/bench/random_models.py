"""Teacher and student of a configuration with random weights: their geometry decides what a run costs."""

from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from kava.config.models import ModelSettings
from kava.config.schema import Config
from kava.errors import UserError
from kava.files import write_json
from kava.models.load import build, load_tokenizer
from kava.models.on_disk import INDEX
from kava.plan.geometry import read_geometry

# One file at a time is in memory.
SHARD: Final = "1GB"


def with_random_weights(config: Config, tokenizer: Path, folder: Path) -> Config:
    """The configuration with made-up models of the same geometry, both with the tokenizer of a directory.

    Their `config.json` lies in their directories, or is known to `kava plan`, and names their dtype. They are written
    to `teacher/` and `student/` in the folder.

    Raises
    ------
    UserError
        A geometry is not known, or its vocabulary is smaller than the tokenizer's.
    """
    chosen: dict[str, ModelSettings] = {}
    for seed, role in enumerate(("teacher", "student")):
        settings: ModelSettings = getattr(config, role)
        _write(settings, tokenizer, folder / role, seed)
        chosen[role] = settings.moved(folder / role)
    return config.model_copy(update=chosen)


def _write(settings: ModelSettings, tokenizer: Path, folder: Path, seed: int) -> None:
    geometry, own = read_geometry(settings), load_tokenizer(ModelSettings(model=str(tokenizer)))
    if len(own) > geometry.vocab_size:
        raise UserError(
            f"--tokenizer {tokenizer} has {len(own)} tokens, and {settings.model} has embeddings for "
            f"{geometry.vocab_size}; give the tokenizer of that model"
        )
    write_random(geometry, folder, seed)
    own.save_pretrained(folder)


def write_random(config: Any, folder: Path, seed: int) -> None:
    """Write a model with made-up weights, a few tensors at a time: one that memory could not hold, too.

    Parameters
    ----------
    config
        Of `transformers`; names the dtype.
    folder
        Gets `config.json` and safetensors in shards.
    seed
        Of the weights: matrices are normal with a standard deviation of 0.02, scales one, biases zero.
    """
    with torch.device("meta"):
        model = build(config, dtype=config.dtype or torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    left = {name: x for name, x in model.state_dict().items() if name not in model.all_tied_weights_keys}
    shards = split_torch_state_dict_into_shards(
        left, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD
    )
    for file, names in shards.filename_to_tensors.items():
        save_file({name: _drawn(name, left[name], generator) for name in names}, folder / file, {"format": "pt"})
    if shards.is_sharded:
        write_json(folder / INDEX, {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def _drawn(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.dim() > 1:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).mul_(0.02).to(like.dtype)
    return torch.ones(like.shape, dtype=like.dtype)

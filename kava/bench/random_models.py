"""Teacher and student of a configuration with random weights: their geometry decides what a run costs."""

from pathlib import Path

import torch

from kava.config.models import ModelSettings
from kava.config.schema import Config
from kava.errors import UserError
from kava.models.load import build, load_tokenizer
from kava.plan.geometry import read_geometry


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(geometry, dtype=geometry.dtype or torch.float32)
    model.save_pretrained(folder)
    own.save_pretrained(folder)

"""Teacher and student of a configuration with random weights: their geometry decides what a run costs."""

import json
from pathlib import Path
from typing import Any

import torch

from kava.config.identity import model_path
from kava.config.load import REPOSITORY
from kava.config.schema import Config, ModelSettings
from kava.errors import UserError
from kava.models import load_model_config, load_tokenizer

# `config.json` of models that a preset names; nothing is downloaded for them.
PACKAGED = REPOSITORY / "kava" / "plan" / "models"


def with_random_weights(config: Config, tokenizer: Path, folder: Path) -> Config:
    """The configuration with made-up models of the same geometry.

    Parameters
    ----------
    config
        Whose teacher and student are directories with a `config.json`, or known by name.
    tokenizer
        Directory of the tokenizer that both get.
    folder
        Where `teacher/` and `student/` are written, in the dtype that their `config.json` names.

    Raises
    ------
    UserError
        A geometry is not known, or its vocabulary is smaller than the tokenizer's.
    """
    chosen: dict[str, ModelSettings] = {}
    for seed, role in enumerate(("teacher", "student")):
        settings: ModelSettings = getattr(config, role)
        _write(settings, tokenizer, folder / role, seed)
        chosen[role] = settings.model_copy(update={"model": str(folder / role), "revision": None})
    return config.model_copy(update=chosen)


def _write(settings: ModelSettings, tokenizer: Path, folder: Path, seed: int) -> None:
    from transformers import AutoModelForCausalLM

    geometry, own = _geometry(settings.model), load_tokenizer({"model": str(tokenizer)})
    if len(own) > geometry.vocab_size:
        raise UserError(
            f"--tokenizer {tokenizer} has {len(own)} tokens, and {settings.model} has embeddings for "
            f"{geometry.vocab_size}; give the tokenizer of that model"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(geometry, dtype=geometry.dtype or torch.float32)
    model.save_pretrained(folder)
    own.save_pretrained(folder)


def _geometry(model: str) -> Any:
    """The `transformers` configuration of a directory, or of a model whose geometry is packaged."""
    if Path(model_path(model)).is_dir():
        return load_model_config({"model": model})
    from transformers import AutoConfig

    name = model.split("/")[-1].lower().removesuffix("-instruct")
    file = PACKAGED / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in PACKAGED.glob("*.json"))) or "none"
        raise UserError(
            f"--random-weights: the geometry of {model} is not packaged (those that are: {known}); set the model to a "
            "directory with its config.json"
        )
    return AutoConfig.for_model(**json.loads(file.read_text()))

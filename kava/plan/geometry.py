"""A model's `config.json` without its weights, and without a download."""

from pathlib import Path
from typing import Any

from kava.config.identity import model_path, on_hub
from kava.config.models import ModelSettings
from kava.errors import UserError
from kava.files import read_json

GEOMETRIES = Path(__file__).parent / "models"
# Hub id → file of GEOMETRIES; their README names the source.
PACKAGED = {
    "Qwen/Qwen2.5-0.5B": "qwen2.5-0.5b",
    "Qwen/Qwen2.5-0.5B-Instruct": "qwen2.5-0.5b",
    "Qwen/Qwen2.5-1.5B": "qwen2.5-1.5b",
    "Qwen/Qwen2.5-1.5B-Instruct": "qwen2.5-1.5b",
    "Qwen/Qwen2.5-7B": "qwen2.5-7b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "Qwen/Qwen2.5-72B": "qwen2.5-72b",
    "Qwen/Qwen2.5-72B-Instruct": "qwen2.5-72b",
    "meta-llama/Llama-3.2-1B": "llama-3.2-1b",
    "meta-llama/Llama-3.2-1B-Instruct": "llama-3.2-1b",
    "meta-llama/Llama-3.2-3B": "llama-3.2-3b",
    "meta-llama/Llama-3.2-3B-Instruct": "llama-3.2-3b",
    "openai-community/gpt2": "gpt2",
    "openai-community/gpt2-medium": "gpt2-medium",
}


def read_geometry(source: ModelSettings) -> Any:
    """The `transformers` configuration of a model.

    Raises
    ------
    UserError
        The model is neither on this machine, nor packaged, nor in the hub's cache; or KAVA cannot read its KV.
    """
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoConfig

    from kava.models.load import load_model_config, require_readable_model

    model, revision = source.model, source.revision
    path = model_path(model)
    if on_hub(model):
        if model in PACKAGED:
            return AutoConfig.for_model(**read_json(GEOMETRIES / f"{PACKAGED[model]}.json"))
        if not isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str):
            known = " ".join(["hf download", model, "config.json", *(["--revision", revision] if revision else [])])
            raise UserError(
                f"the geometry of {model} is not known: it is not in the hub's cache, and `kava plan` downloads "
                f"nothing; fetch its config.json with `{known}`, or give a local directory"
            )
    config = load_model_config(source)
    require_readable_model(config, model)
    return config

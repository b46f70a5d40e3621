"""What a model directory must hold, and what is wrong with one that does not."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# Each is a vocabulary. Without one transformers may make an empty tokenizer, and say nothing.
VOCABULARIES = (
    ("tokenizer.json",), ("tokenizer.model",), ("spiece.model",), ("vocab.json", "merges.txt"), ("vocab.txt",),
    ("*.tiktoken",),
)  # fmt: skip
CONVERT = (
    "from transformers import AutoModelForCausalLM as M; M.from_pretrained('{0}').save_pretrained('{0}-safetensors')"
)


def shards_of(folder: Path) -> list[str]:
    """Files that `transformers` reads the weights of a directory from; one that is whole comes before shards.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        The index is not one.
    """
    if (folder / WHOLE).is_file() or not (folder / INDEX).is_file():
        return [WHOLE]
    return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))


def adapter_fault(folder: Path) -> str | None:
    """Why a directory is no model of its own: `transformers` would load another one, and put the adapter upon it."""
    if not (folder / ADAPTER).is_file():
        return None
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = "its base model"
    return (
        f"it is an adapter ({ADAPTER}), and not a whole model; merge it into {base} with peft's `merge_and_unload()`, "
        "save that with `save_pretrained`, and give that directory"
    )


def settings_fault(folder: Path) -> str | None:
    """Why the `config.json` of a directory is none of a model; None if it says what model it is."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return f"its config.json cannot be read as JSON ({error}); copy or download it again"
    if not isinstance(settings, dict):
        return "its config.json is no JSON object; copy or download it again"
    # Without it transformers would guess from the directory's name.
    if not isinstance(settings.get("model_type"), str) and "auto_map" not in settings:
        return "its config.json names no model_type; take the config.json that the model was published with"
    return None


def weights_fault(folder: Path, again: str) -> str | None:
    """Why the weights of a directory cannot be read, and what mends it; None if their files are all there and whole.

    `again` says how missing files come here, as in "download them with ...".
    """
    if fault := adapter_fault(folder):
        return fault
    try:
        shards = shards_of(folder)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{INDEX} is not whole; {again}"
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if len(missing) == len(shards) and (pickles := sorted(folder.glob("*.bin"))):
        return (
            f"its weights are {pickles[0].name}, and only safetensors are read, since a pickle runs code; if you trust "
            f'it, convert it with `python -c "{CONVERT.format(folder)}"`'
        )
    if len(missing) == len(shards) and (ggufs := sorted(folder.glob("*.gguf"))):
        return (
            f"its weights are {ggufs[0].name}, and only safetensors are read; take the checkpoint of the same model "
            "that was not quantised, in safetensors"
        )
    if missing:
        return f"{missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''} missing; {again}"
    for shard in shards:
        try:
            with safe_open(folder / shard, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{shard} is damaged or was not copied to its end ({error}); {again}"
    return None


def tokenizer_fault(folder: Path, again: str) -> str | None:
    """As `weights_fault`, of the tokenizer."""
    if any(all(next(folder.glob(name), None) for name in names) for names in VOCABULARIES):
        return None
    return (
        "its tokenizer is missing or not whole: neither tokenizer.json nor tokenizer.model is there, nor vocab.json "
        f"with merges.txt; {again}"
    )

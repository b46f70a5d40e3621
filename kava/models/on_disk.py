"""What a model directory must hold, and what is wrong with one that does not."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
GENERATION = "generation_config.json"
# Each is a vocabulary. Without one transformers may make an empty tokenizer, and say nothing.
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("*.tiktoken",))
SENTENCEPIECE = (("tokenizer.model",), ("spiece.model",), ("sentencepiece.bpe.model",))
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
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
    shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    if not shards or not all(isinstance(shard, str) for shard in shards):
        raise ValueError(f"{INDEX} names no files")
    return sorted(shards)


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
    settings = _object(folder / "config.json", "copy or download it again")
    if isinstance(settings, str):
        return settings
    # Without it transformers would guess from the directory's name.
    if not isinstance(settings.get("model_type"), str) and "auto_map" not in settings:
        return "its config.json names no model_type; take the config.json that the model was published with"
    return _generation_fault(folder)


def _generation_fault(folder: Path) -> str | None:
    """Why the end tokens of a directory cannot be known: `transformers` would go on without them, or stumble later."""
    path = folder / GENERATION
    if not path.is_file():
        return None
    again = "copy or download it again, or remove it where config.json names the model's end tokens"
    settings = _object(path, again)
    if isinstance(settings, str):
        return settings
    ends = settings.get("eos_token_id")
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [] if ends is None else [ends])):
        return f"its {GENERATION} has the eos_token_id {ends!r}, which is neither an id nor a list of ids; {again}"
    return None


def _object(path: Path, again: str) -> dict[str, Any] | str:
    """The JSON object of a file, or why it holds none."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError) as error:
        return f"its {path.name} cannot be read as JSON ({error}); {again}"
    return settings if isinstance(settings, dict) else f"its {path.name} is no JSON object; {again}"


def weights_fault(folder: Path, again: str) -> str | None:
    """Why the weights of a directory cannot be read, and what to do; None if their files are all there and whole.

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
            f"its weights are {ggufs[0].name}, and of a directory only safetensors are read; name the file in place of "
            f"its directory, {ggufs[0]}"
        )
    if missing:
        return f"{missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''} missing; {again}"
    for shard in shards:
        try:
            with safe_open(folder / shard, framework="numpy"):
                pass
        except PermissionError:
            raise
        except (SafetensorError, OSError) as error:
            return f"{shard} is damaged or was not copied to its end ({error}); {again}"
    return None


def tokenizer_fault(folder: Path, again: str) -> str | None:
    """As `weights_fault`, of the tokenizer; only names of files are looked at."""
    if _has_one(folder, VOCABULARIES):
        return None
    if _has_one(folder, SENTENCEPIECE):
        if find_spec("sentencepiece"):
            return None
        return (
            "its tokenizer is a SentencePiece model alone, and the package sentencepiece, which reads it, is missing; "
            "`pip install sentencepiece`, or save a tokenizer.json beside it where that is installed, with "
            f"`AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')`"
        )
    return (
        "its tokenizer is missing or not whole: neither tokenizer.json nor tokenizer.model is there, nor vocab.json "
        f"with merges.txt; {again}"
    )


def tokenizer_damage(folder: Path, again: str) -> str | None:
    """As `tokenizer_fault`, of files that are there and cannot be read; they are read whole."""
    if fault := tokenizer_fault(folder, again):
        return fault
    for name in ("tokenizer.json", *TOKENIZER_SETTINGS):
        path = folder / name
        if not path.is_file():
            continue
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"{name} is damaged or was not copied to its end ({error}); {again}"
        needed = {"model", "added_tokens"} if name == "tokenizer.json" else set()
        if not isinstance(settings, dict) or not needed <= settings.keys():
            return f"{name} is JSON, and not what a tokenizer keeps there; {again}"
    return None


def _has_one(folder: Path, files: tuple[tuple[str, ...], ...]) -> bool:
    return any(all(next(folder.glob(name), None) for name in names) for names in files)

"""What a model directory must hold, and what is wrong with one that does not."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

INDEX = "model.safetensors.index.json"
# Each is a vocabulary. Without one transformers may make an empty tokenizer, and say nothing.
VOCABULARIES = (
    ("tokenizer.json",), ("tokenizer.model",), ("spiece.model",), ("vocab.json", "merges.txt"), ("vocab.txt",),
    ("*.tiktoken",),
)  # fmt: skip
CONVERT = (
    "from transformers import AutoModelForCausalLM as M; M.from_pretrained('{0}').save_pretrained('{0}-safetensors')"
)


def weights_fault(folder: Path, again: str) -> str | None:
    """Why the weights of a directory cannot be read, and what mends it; None if their files are all there and whole.

    `again` says how missing files come here, as in "download them with ...".
    """
    if (folder / INDEX).is_file():
        try:
            shards = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError):
            return f"{INDEX} is not whole; {again}"
    else:
        shards = ["model.safetensors"]
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if len(missing) == len(shards) and (pickles := sorted(folder.glob("*.bin"))):
        return (
            f"its weights are {pickles[0].name}, and only safetensors are read, since a pickle runs code; if you trust "
            f'it, convert it with `python -c "{CONVERT.format(folder)}"`'
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
    """As `weights_fault`, of the tokenizer."""
    if any(all(next(folder.glob(name), None) for name in names) for names in VOCABULARIES):
        return None
    return (
        "its tokenizer is missing or not whole: neither tokenizer.json nor tokenizer.model is there, nor vocab.json "
        f"with merges.txt; {again}"
    )

"""What a GGUF file says of itself before its weights are read, and why it cannot be read."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from transformers import AutoConfig, PreTrainedConfig
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import read_gguf_metadata
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS, GGUF_TOKENIZER_TYPES

from kava.faults import machine_fault
from kava.text import first_line

Metadata = dict[str, Any]
MAGIC: Final = b"GGUF"
AGAIN: Final = "copy or download it again"
OTHER: Final = "take the same model in safetensors, or a GGUF file of another family"
NO_PACKAGE: Final = "the package gguf, which reads such files, is not installed; `pip install gguf`"
# Settings of a GGUF file → of `config.json`, where `transformers` reads them for some families alone.
ALSO: Final = {
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.dimension_count": "head_dim",
}
# Values of `tokenizer.ggml.pre`, what splits a text before the merges, that `transformers` does not know. It takes
# GPT-2's expression: rightly of these, and of the others once digits are set apart (llama.cpp, `llama-vocab.cpp`).
AS_GPT2: Final = ("gpt-2", "phi-2", "mpt", "olmo", "jais")
DIGITS_APART: Final = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")


def gguf_fault(file: Path) -> str | None:
    """Why a GGUF file cannot be read, and what to do; None if its header says nothing against it."""
    with file.open("rb") as stream:
        start = stream.read(len(MAGIC))
    if start != MAGIC:
        return f"it is no GGUF file (it begins with {start!r}); {AGAIN}, or name another file"
    try:
        metadata, _ = read_gguf_metadata(str(file))
    # A header that ends too early is any of these to it.
    except Exception as error:
        return f"its header cannot be read ({first_line(error)}); {AGAIN}"
    if (parts := metadata.get("split.count", 1)) > 1:
        return (
            f"it is one of {parts} parts; join them with llama.cpp's `llama-gguf-split --merge FIRST_PART WHOLE`, and "
            "name the whole"
        )
    if find_spec("gguf") is None:
        return NO_PACKAGE
    try:
        settings, _ = PreTrainedConfig.get_config_dict(file.parent, gguf_file=file.name)
        config = AutoConfig.for_model(**settings).to_dict()
    except Exception as error:  # of a file that is anybody's, it may stumble with anything
        if machine := machine_fault(error):
            return machine
        if "is not supported" in str(error):
            return f"its architecture is {metadata['general.architecture']}, which transformers does not read; {OTHER}"
        return f"it is damaged or was not copied to its end ({first_line(error)}); {AGAIN}"
    return _unread(metadata, config) or _tokenizer_fault(metadata)


def _unread(metadata: Metadata, config: dict[str, Any]) -> str | None:
    """What would make another model of it, since `transformers` passes over it."""
    architecture = metadata["general.architecture"]
    read = GGUF_CONFIG_MAPPING.get(config["model_type"].removesuffix("_text"))
    if read is None:  # of its newer reader, which takes all
        return None
    head_dim = config.get("head_dim") or config.get("hidden_size", 0) // (config.get("num_attention_heads") or 1)
    known = config | {"head_dim": head_dim}
    for key, value in metadata.items():
        family, _, name = key.partition(".")
        # Zero, false and "none" switch off what nobody asked for.
        if family != architecture or read.get(name) is not None or value in (0, "none"):
            continue
        if known.get(ALSO.get(name, name.rpartition(".")[2])) != value:
            return f"its setting {key} ({value}) is one that transformers does not read; {OTHER}"
    return None


def _tokenizer_fault(metadata: Metadata) -> str | None:
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind is None or not metadata.get("tokenizer.ggml.tokens"):
        return "it holds no tokenizer; take a GGUF file of the same model that does"
    if kind not in GGUF_TOKENIZER_TYPES:
        return f"its tokenizer is of the kind {kind!r}, which transformers does not read; {OTHER}"
    if kind == "gpt2" and split not in (*GGUF_PRE_TOKENIZER_SPLITS, *AS_GPT2, *DIGITS_APART):
        said = (
            "does not say how" if split in (None, "default") else f"splits in a way ({split}) unknown to transformers"
        )
        return (
            f"its tokenizer {said} a text is split before its merges, which would be other tokens; take a newer GGUF "
            "file of the same model, or the same model in safetensors"
        )
    return None


def end_tokens(metadata: Metadata) -> list[int]:
    """Ids that end an answer: of a text, and of a turn where that is another."""
    named = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    return list(dict.fromkeys(end for end in named if end is not None))

"""What a model, tokenizer or data set *is*: a revision, or the hashes of its files. Never a path."""

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kava.config.cache import require_user_cache, user_cache
from kava.config.data import Data, FolderData
from kava.config.gguf import PIP, gguf_file, is_gguf
from kava.config.load import PACKAGE
from kava.config.models import ModelSettings
from kava.config.splits import FORMATS, split_files
from kava.errors import UserError
from kava.files import read_json, sha256_file, sha256_json, write_json

WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model",
             "special_tokens_map.json", "added_tokens.json")  # fmt: skip
# The end token is a stop string, and the tokenizer goes with a student that is exported.
ANSWERS = (*WEIGHTS, *TOKENIZER, "generation_config.json")
BUILTIN = "kava:"
# Bytes; file systems take 255, of which kind, codec and key need some.
LONGEST_NAME = 200
# Of what `kava.models.gguf` makes of a GGUF file; another number is another model.
GGUF_CONVERSION = 1
# Bytes of a file whose hash is kept.
LARGE = 16 << 20
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_path(model: str) -> str:
    """Where to load a model from: a local directory, or the hub id unchanged.

    Of a GGUF file it is the directory of its conversion, which loading makes if it is not there yet.

    Raises
    ------
    UserError
        Neither an existing directory with a `config.json` nor the form of a hub id; or a GGUF file that is not here.
    """
    if is_gguf(model):
        stem = gguf_file(model).stem.encode()[:100].decode(errors="ignore")
        return str(require_user_cache() / "gguf" / f"{stem}-{sha256_json(_gguf_identity(model))[:16]}")
    if model.startswith(BUILTIN):
        directory = PACKAGE / "demo" / model.removeprefix(BUILTIN)
        if not directory.is_dir():
            raise UserError(f"unknown built-in model {model!r}; allowed: kava:teacher, kava:student")
        return str(directory)
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            if (Path(model) / "adapter_config.json").is_file():
                raise UserError(
                    f"model directory {model} holds an adapter and no model; merge it into its base model with peft's "
                    "`merge_and_unload()`, save that with `save_pretrained`, and give that directory"
                )
            raise UserError(f"model directory {model} has no config.json; give a directory in transformers format")
        return model
    if model.startswith((".", "/", "~")) or not HUB_ID.fullmatch(model):
        raise UserError(
            f"model directory {model} does not exist; give an existing directory or a hub id such as "
            "Qwen/Qwen2.5-0.5B with its revision"
        )
    return model


def on_hub(name: str) -> bool:
    """Whether a model or data set is named by a hub id, and not by a place on this machine."""
    return bool(HUB_ID.fullmatch(name)) and not name.startswith(".") and not is_gguf(name) and not Path(name).is_dir()


def display_name(model: str) -> str:
    """Name of a model to show and to keep in manifests: a hub id, or the name of a directory or file without a path."""
    if is_gguf(model):
        return model if model.startswith(PIP) else Path(model).name
    return Path(model).resolve().name if Path(model).is_dir() else model


def layers_named(keep: int | Sequence[int] | None) -> str:
    """Of a student cut from a model, what to say behind the model's name; nothing of a whole one."""
    if keep is None:
        return ""
    return f", {keep} of its layers" if isinstance(keep, int) else f", its layers {', '.join(map(str, keep))}"


def short_name(settings: ModelSettings) -> str:
    """Name of a model as part of a folder's: no braces, Snakemake's wildcards, and with room for what follows."""
    name = re.split("[/:]", display_name(settings.model))[-1].lower()
    if is_gguf(settings.model):
        name = name.removesuffix(".gguf")
    return re.sub(r"[{}]", "_", name).encode()[:LONGEST_NAME].decode(errors="ignore")


def model_identity(settings: ModelSettings, patterns: tuple[str, ...] = WEIGHTS) -> dict[str, Any]:
    """What the bytes of a model depend on: a revision of the hub, or hashes of files.

    ``{"hub", "revision"}``, ``{"files": {name: sha256}}``, or of a GGUF file ``{"gguf": sha256, "conversion"}``.
    """
    if is_gguf(settings.model):
        return _gguf_identity(settings.model)
    path = model_path(settings.model)
    # Code of the repository's own is another model; without it keys are as they were before there was the setting.
    code = {"trust_remote_code": True} if settings.trust_remote_code else {}
    if not Path(path).is_dir():
        return _hub_identity(path, settings.revision, "model") | code
    if code:
        patterns += ("*.py",)
    os.listdir(path)  # to `glob`, a folder that cannot be read is an empty one
    files = sorted({file for pattern in patterns for file in Path(path).glob(pattern)})
    return {"files": {file.name: _cached_sha256(file) for file in files}} | code


def data_identity(data: Data) -> dict[str, Any]:
    """What the rows of a data set depend on, per split, so that a store need not depend on the test questions."""
    source: dict[str, Any] = {"kind": data.kind, **data.made_by}
    files: dict[str, dict[str, Any]] = {"train": {}, "test": {}}
    if isinstance(data, FolderData):
        if Path(data.path).is_dir():
            for split, of_split in files.items():
                form, paths = split_files(Path(data.path), split)
                hashes = [_cached_sha256(path) for path in paths]
                of_split["sha256"] = hashes[0] if form == "json" else hashes
        elif Path(data.path).exists():
            folder = Path(data.path).parent
            raise UserError(f"data.path {data.path} is a file; give its folder, {folder}, which has to hold {FORMATS}")
        elif on_hub(data.path):
            source |= _hub_identity(data.path, data.revision, "data set")
        else:
            raise UserError(
                f"data directory {data.path} does not exist; give a directory with {FORMATS}, or a hub id such as "
                "openai/gsm8k with its revision"
            )
    train = {"train": data.train, "validation": data.validation, **files["train"]}
    return {"source": source, "train": train, "test": {"limit": data.test, **files["test"]}}


def _gguf_identity(model: str) -> dict[str, Any]:
    return {"gguf": _cached_sha256(gguf_file(model)), "conversion": GGUF_CONVERSION}


def _hub_identity(hub_id: str, revision: str | None, what: str) -> dict[str, Any]:
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"{what} {hub_id} needs `revision:` with the 40 hex digits of a commit (got {revision!r}), since results "
            "are cached under it; the hub page of the repository lists its commits"
        )
    return {"hub": hub_id, "revision": revision}


def _cached_sha256(path: Path) -> str:
    """Hash a file once per (path, size, time of change): weights are gigabytes and a dry run should not reread them."""
    stat = path.stat()
    if stat.st_size < LARGE:
        return sha256_file(path)
    folder = user_cache()
    cache = folder / "sha256.json" if folder else None
    known: dict[str, str] = {}
    # The cache only saves time; a home that is not there, or cannot be read or written, is no error.
    with suppress(OSError, UserError):
        known = read_json(cache) if cache else {}
    key = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    if key not in known:
        known[key] = sha256_file(path)
        if cache:
            with suppress(OSError):
                write_json(cache, known)
    return known[key]

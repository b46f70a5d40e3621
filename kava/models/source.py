"""Where a model's files come from, and why they cannot be read."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from kava.config.gguf import is_gguf
from kava.config.identity import model_path
from kava.config.models import ModelSettings
from kava.errors import UserError
from kava.faults import machine_fault
from kava.hub import FETCH, NO_SAFETENSORS, Repository, hub_fault
from kava.models.gguf import converted
from kava.models.on_disk import tokenizer_damage, tokenizer_fault, weights_fault
from kava.text import first_line

# What transformers raises of files that are missing, damaged, gated or out of reach.
FAILURES = (OSError, ValueError, ImportError, SafetensorError)
SETTINGS = ("config.json", "tokenizer_config.json")


def path_of(source: ModelSettings) -> str:
    """Where to load from; of a GGUF file its conversion, which is made first.

    Code of yet another repository is refused, since no revision pins it and no key knows it.
    """
    if is_gguf(source.model):
        return str(converted(source.model))
    path = model_path(source.model)
    if not source.trust_remote_code:
        return path
    settings: list[dict[str, Any]] = []
    with suppress(*FAILURES):  # loading says what is wrong
        settings.append(PreTrainedConfig.get_config_dict(path, revision=source.revision)[0])
        settings.append(get_tokenizer_config(path, revision=source.revision))
    for name in _classes([of_file.get("auto_map") for of_file in settings]):
        repository, _, file = name.rpartition("--")
        if repository not in ("", source.model):
            raise UserError(
                f"{source.model} takes its code from another repository ({name} in auto_map), whose revision "
                f"nothing pins; copy that code beside the weights of a local directory, and write {file} there"
            )
    return path


def _classes(auto_map: Any) -> Iterator[str]:
    if isinstance(auto_map, str):
        yield auto_map
    elif isinstance(auto_map, Mapping):
        yield from _classes(list(auto_map.values()))
    elif isinstance(auto_map, list):
        for value in auto_map:
            yield from _classes(value)


def which(source: ModelSettings) -> dict[str, Any]:
    """Options of `from_pretrained` that say which version of a model is meant, and whether its code may run."""
    # Said in so many words: transformers would ask at the terminal.
    return {"revision": source.revision, "trust_remote_code": source.trust_remote_code}


def loading_failed(what: str, source: ModelSettings, error: Exception) -> str:
    """The sentence on what transformers raised; `what` is "model", "configuration of" or "tokenizer of"."""
    start = f"cannot load the {what} {source.model}"
    repository = Repository("model", source.model, source.revision)
    if fault := hub_fault(repository, error) or machine_fault(error):
        return f"{start}: {fault}"
    if "does not recognize this architecture" in str(error):
        return f"{start}: {first_line(error).split('. ')[0]}; choose a model of another family"
    if "trust_remote_code" in str(error):
        return (
            f"{start}: it needs Python code of its own repository; if you have read and trust that code at this "
            "revision, set `trust_remote_code: true` beside its name"
        )
    if what == "model" and "does not appear to have a file named" in str(error):
        return f"{start}: {NO_SAFETENSORS.format(repository)}"
    if what.startswith("tokenizer") and "instantiate the backend tokenizer" in str(error):
        return (
            f"{start}: without a tokenizer.json its files need the class that tokenizer_config.json names, and "
            "transformers has none of that name; choose a model with a tokenizer.json"
        )
    faults = {"model": weights_fault, "tokenizer of": tokenizer_damage}
    if what in faults and (fault := fault_of(source, faults[what])):
        return f"{start}: {fault}"
    if Path(model_path(source.model)).is_dir():
        # A validator says in its second line what is wrong.
        said = " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or first_line(error)
        return f"{start} ({said}); check the files in that directory"
    return f"{start} at revision {source.revision} ({first_line(error)}); check the revision"


def require_vocabulary(source: ModelSettings) -> None:
    """Raise `UserError` for a tokenizer without its vocabulary."""
    require_sound("tokenizer of", source, fault_of(source, tokenizer_fault))


def require_sound(what: str, source: ModelSettings, fault: str | None) -> None:
    """Raise `UserError` if something is wrong with the files of a model, its configuration or its tokenizer."""
    if fault:
        raise UserError(f"cannot load the {what} {source.model}: {fault}")


def fault_of(source: ModelSettings, find: Callable[[Path, str], str | None]) -> str | None:
    """What is wrong with a model's files on this machine, and what to do."""
    folder, local = folder_of(source), Path(model_path(source.model)).is_dir()
    return find(folder, f"copy the file to {folder}" if local else f"download it with {FETCH}") if folder else None


def folder_of(source: ModelSettings) -> Path | None:
    """Directory of a model's files on this machine; None while nothing of it has come from the hub."""
    path = model_path(source.model)
    if Path(path).is_dir():
        return Path(path)
    files = [try_to_load_from_cache(path, name, revision=source.revision) for name in SETTINGS]
    return next((Path(file).parent for file in files if isinstance(file, str)), None)

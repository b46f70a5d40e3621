"""A GGUF file as a plain model directory in the user's cache: read once, and from then on a directory as any other.

`transformers` reads a GGUF file of 135 million weights in half a minute, each time, and cannot save the model. So the
weights are dequantised once, to float32, and saved with configuration, end tokens, tokenizer and card.
"""

import logging
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
from transformers.integrations.gguf import read_gguf_metadata
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kava.config.gguf import gguf_file
from kava.config.identity import model_path
from kava.errors import UserError
from kava.faults import machine_fault
from kava.locks import locked
from kava.models.gguf_header import AGAIN, DIGITS_APART, OTHER, Metadata, end_tokens, gguf_fault
from kava.models.on_disk import weights_fault
from kava.models.weights import without_report
from kava.text import first_line

log = logging.getLogger("kava")
ROPE_FACTORS: Final = "rope_freqs.weight"
# Of Llama 3.1 to 3.3, whose files hold what comes of it and not these numbers.
LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Fields of a card → of a GGUF file.
OF_CARD: Final = {"license": "license", "license_name": "license.name", "license_link": "license.link"}


def is_converted(model: str) -> bool:
    """Whether the directory of a GGUF model is there, and its weights are whole."""
    folder = Path(model_path(model))
    return folder.is_dir() and weights_fault(folder, "") is None


def converted(model: str) -> Path:
    """Directory of a GGUF model; it is made if it is not there or not whole.

    Raises
    ------
    UserError
        The file cannot be read, or holds what `transformers` does not read; the package gguf is missing.
    """
    folder = Path(model_path(model))
    if is_converted(model):
        return folder
    with locked(folder.with_name(f"{folder.name}.lock")):
        if is_converted(model):  # by the process that was waited for
            return folder
        file, staged = gguf_file(model).resolve(), folder.with_name(f"{folder.name}.partial")
        if fault := gguf_fault(file):
            raise UserError(f"cannot read the model {model}: {fault}")
        log.info("reading %s, once, into %s", file.name, folder)
        shutil.rmtree(staged, ignore_errors=True)  # of a process that was killed: this one has the lock
        staged.mkdir()
        try:
            _convert(model, file, staged)
            shutil.rmtree(folder, ignore_errors=True)
            staged.rename(folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return folder


def _convert(model: str, file: Path, folder: Path) -> None:
    # Alone in a folder: what lies beside it, a tokenizer or an adapter, is not of the file, and in no key.
    alone = folder / "alone"
    alone.mkdir()
    (alone / file.name).symlink_to(file)
    metadata, names = read_gguf_metadata(str(file))
    try:
        with without_report(), torch.random.fork_rng(devices=[]):
            loaded, report = AutoModelForCausalLM.from_pretrained(
                alone, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=file.name)
    except Exception as error:  # of a file that is anybody's, it may stumble with anything
        said = machine_fault(error) or f"{first_line(error)}; {OTHER}"
        raise UserError(f"cannot read the model {model}: {said}") from error
    shutil.rmtree(alone)
    tensors = _tensors(file)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_model_name_or_path", None)
    if ROPE_FACTORS in names:
        settings["rope_parameters"] = _llama3(model, type(loaded.config).from_dict(settings), tensors.pop(ROPE_FACTORS))
    _require_all_read(model, loaded, report, tensors)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings), dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    bos, pad = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "padding"))
    plain.generation_config = GenerationConfig(
        bos_token_id=bos, eos_token_id=end_tokens(metadata) or None, pad_token_id=pad
    )
    plain.save_pretrained(folder)
    if metadata.get("tokenizer.ggml.pre") in DIGITS_APART:
        apart = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = apart
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_card(file, metadata), encoding="utf-8")


def _tensors(file: Path) -> dict[str, Any]:
    """Tensors of a file by name, as they are stored."""
    from gguf import GGUFReader

    return {tensor.name: tensor for tensor in GGUFReader(file).tensors}


def _require_all_read(model: str, loaded: Any, report: Any, tensors: dict[str, Any]) -> None:
    """Raise `UserError` for weights that were made up, and for tensors that were passed over."""
    holes = sorted(report["missing_keys"]) or sorted(name for name, *_ in report["mismatched_keys"])
    if holes:
        raise UserError(
            f"cannot read the model {model}: {len(holes)} of its tensors are not in the file, or of another shape "
            f"than it says ({holes[0]}); {AGAIN}, or {OTHER}"
        )
    stored = sum(int(tensor.n_elements) for tensor in tensors.values())
    taken = sum(weights.numel() for weights in loaded.parameters())
    if stored != taken:
        raise UserError(
            f"cannot read the model {model}: of the {stored:,} numbers in the file transformers makes a model of "
            f"{taken:,}, which would be another; {OTHER}"
        )


def _llama3(model: str, config: Any, stored: Any) -> dict[str, Any]:
    """RoPE of Llama 3.1 to 3.3, of which a file holds the divisors of the frequencies alone.

    Raises
    ------
    UserError
        They are not those of that rule.
    """
    divisors = np.asarray(stored.data, dtype=np.float64)
    rope = config.rope_parameters | {"rope_type": "llama3", "factor": float(divisors.max()), **LLAMA3}
    scaled = type(config).from_dict(config.to_dict() | {"rope_parameters": rope})
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled)
    plain = config.rope_parameters["rope_theta"] ** -(np.arange(len(divisors)) / len(divisors))
    if not np.allclose(plain / divisors, frequencies.double().numpy(), rtol=1e-4):
        raise UserError(
            f"cannot read the model {model}: its {ROPE_FACTORS} scale RoPE in a way that is not that of Llama 3.1; "
            "take the same model in safetensors"
        )
    return rope


def _card(file: Path, metadata: Metadata) -> str:
    """What the file says of its name and licence, as the hub's cards say it."""
    fields = {field: metadata.get(f"general.{name}") for field, name in OF_CARD.items()}
    name = metadata.get("general.name", file.stem)
    header = ModelCardData(model_name=name, **{field: value for field, value in fields.items() if value})
    return str(ModelCard(f"---\n{header.to_yaml()}\n---\n# {name}\n\nThe weights of {file.name}, as float32.\n"))

"""Load, quantise, and keep to one model: the only place where pretrained weights enter a process."""

import gc
import logging
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.utils import logging as transformers_logging

from kava.config.identity import model_path
from kava.config.models import ModelSettings, Student, Teacher
from kava.errors import UserError
from kava.files import read_json
from kava.models.capture import NO_ROPE, ROTATE_HALF, geometry
from kava.models.cut import chosen_layers, cut_config, cut_model
from kava.models.families import require_readable, require_readable_cache
from kava.models.on_disk import adapter_fault, settings_fault, weights_fault
from kava.models.quantised import require_unquantised
from kava.models.source import FAILURES, folder_of, loading_failed, path_of, require_sound, require_vocabulary, which
from kava.models.weights import CONVERSION, headers_fault, loaded_fault, without_report
from kava.text import first_line

_resident: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_guarded = True
# Configurations whose cache was looked at, as JSON, and whether that could be done without weights.
_looked_at: dict[str, bool] = {}


def load_teacher(source: Teacher, device: torch.device) -> Any:
    """Load the frozen teacher.

    Parameters
    ----------
    source
        As in the configuration.
    device
        Where it runs; bitsandbytes computes NF4 and LLM.int8 on the CPU too.
    """
    dtype = getattr(torch, source.dtype)
    model = _load(source, device, dtype=dtype, quantization_config=quantization_of(source, dtype))
    return model.eval().requires_grad_(False)


def load_student(source: ModelSettings, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """Load the student; what is trained needs fp32 weights, since updates of 5e-5 are lost to rounding in bf16."""
    return _load(source, device, dtype=dtype)


def load_for_evaluation(source: ModelSettings, device: torch.device) -> Any:
    """Load any model as a user would: in the dtype of its checkpoint, or quantised if it is a teacher."""
    model = load_teacher(source, device) if isinstance(source, Teacher) else _load(source, device, dtype="auto").eval()
    model.generation_config = plain_greedy(model.generation_config)
    return model


def plain_greedy(own: GenerationConfig) -> GenerationConfig:
    """A model's special tokens, and nothing else of its settings.

    Instruct models ship a repetition penalty, which would punish arithmetic for repeating numbers.
    """
    pad = own.pad_token_id if own.pad_token_id is None or own.pad_token_id >= 0 else None
    return GenerationConfig(bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=pad)


def load_ends(source: ModelSettings, tokenizer: Any) -> dict[int, str]:
    """Ids at which a model's answers end, with their text: its own, and its tokenizer's end token."""
    try:
        own = GenerationConfig.from_pretrained(path_of(source), revision=source.revision)
    except OSError:  # without that file, `config.json` says it
        own = GenerationConfig.from_model_config(load_model_config(source))
    return {end: tokenizer.decode([end]) for end in ends_of(own, tokenizer)}


def ends_of(own: GenerationConfig, tokenizer: Any) -> list[int]:
    """A model's own end tokens, and its tokenizer's, which the examples end in: without it answers would run on."""
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    return list(dict.fromkeys(end for end in [*ends, tokenizer.eos_token_id] if end is not None))


def load_model_config(source: ModelSettings) -> Any:
    """The configuration of a model, without its weights; `UserError` for weights that are quantised already."""
    config, kept = _whole_config(source), _kept(source)
    return config if kept is None else cut_config(config, chosen_layers(kept, config.num_hidden_layers, source.model))


def _kept(source: ModelSettings) -> int | tuple[int, ...] | None:
    """Which layers of a model are to be loaded; None for all."""
    return source.keep_layers if isinstance(source, Student) else None


def _whole_config(source: ModelSettings) -> Any:
    path = path_of(source)
    if folder := folder_of(source):
        require_sound("configuration of", source, settings_fault(folder))
        require_unquantised(source, read_json(folder / "config.json"))  # before a class stumbles over it
    try:
        config = AutoConfig.from_pretrained(path, **which(source))
    except Exception as error:  # config.json is anybody's, and its class may stumble over it with anything
        raise UserError(loading_failed("configuration of", source, error)) from None
    require_unquantised(source, config.to_dict())
    return config


def check_model(source: ModelSettings) -> bool:
    """Read a model's settings, and the headers of its weights where they are on this machine; takes a second.

    Returns
    -------
    bool
        Whether it is known already, without weights, that its KV can be read.

    Raises
    ------
    UserError
        It keeps no KV that KAVA can read, is quantised already, or its files are not the weights of its `config.json`.
    """
    config = _whole_config(source)
    known = require_readable_model(config, source.model)
    load_model_config(source)  # says which of its layers it does not have
    if folder := folder_of(source):
        fault = weights_fault(folder, f"copy the file to {folder}")
        if fault and folder != Path(model_path(source.model)):
            fault = adapter_fault(folder)  # what else is missing comes from the hub
        elif fault is None:
            fault = headers_fault(folder, _empty(config, source.model))
        require_sound("model", source, fault)
    return known


def require_readable_model(config: Any, name: str) -> bool:
    """Raise `UserError` for a model without KV that KAVA can read; whether no weights are needed to know it."""
    settings = config.to_json_string()
    if settings not in _looked_at:
        require_readable(config, name)
        model = _empty(config, name)
        known = config.model_type in ROTATE_HALF + NO_ROPE
        _looked_at[settings] = known or require_readable_cache(model, name, geometry(config))
    return _looked_at[settings]


def load_tokenizer(source: ModelSettings) -> Any:
    """Load a fast tokenizer; `UserError` if it cannot be read, is slow, or has no vocabulary or no end token."""
    path = path_of(source)
    require_vocabulary(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **which(source))
    except Exception as error:  # of files that are no tokenizer, transformers and tokenizers raise anything
        raise UserError(loading_failed("tokenizer of", source, error)) from None
    require_vocabulary(source)  # it may have come only now
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {source.model} ({type(tokenizer).__name__}) does not say which characters a token "
            "stands for, and segments need that; choose a model with a tokenizer.json"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {source.model} has no end token; set eos_token in its files")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build(config: Any, **options: Any) -> Any:
    """A model with random weights; from code of its repository only where its configuration came from there."""
    remote = type(config).__module__.startswith("transformers_modules.")
    return AutoModelForCausalLM.from_config(config, trust_remote_code=remote, **options)


def _empty(config: Any, name: str) -> Any:
    """A model without data: names and shapes of its weights."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return build(config, dtype=torch.bfloat16).eval()
    except Exception as error:  # config.json is anybody's, and its model may stumble over it with anything
        raise UserError(
            f"no model can be made of the config.json of {name} ({type(error).__name__}: {first_line(error)}); copy or "
            "download it again"
        ) from None


@contextmanager
def second_model_allowed() -> Iterator[None]:
    """Lift the one-model guard: for benchmarks that compare with keeping the teacher in memory."""
    global _guarded
    _guarded = False
    try:
        yield
    finally:
        _guarded = True


def quantization_of(source: Teacher, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How bitsandbytes is to quantise a teacher's weights; None if not at all."""
    if source.quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=source.double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )
    if source.quantization == "int8":
        # It says with every multiplication that it rounds inputs to fp16 on their way to 8 bits.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def require_alone(source: ModelSettings) -> None:
    """Refuse a second model: `RuntimeError`."""
    if _guarded and _resident:
        gc.collect()  # one that only a cycle of references holds is gone
    if _guarded and (resident := next(iter(_resident), None)) is not None:
        raise RuntimeError(
            f"{resident.name_or_path} is resident: one process holds one pretrained model, or two would have to share "
            f"8 GB; free it before loading {source.model}"
        )


def becomes_resident(model: nn.Module) -> None:
    """From now on no other model may be loaded, until this one is gone."""
    _resident.add(model)


def _load(source: ModelSettings, device: torch.device, **options: Any) -> Any:
    require_alone(source)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    path = path_of(source)
    without_weights = check_model(source)
    try:
        with without_report():
            model, report = AutoModelForCausalLM.from_pretrained(
                path,
                **which(source),
                use_safetensors=True,
                device_map={"": device},
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report names them
                **options,
            )
    except FAILURES as error:
        raise UserError(loading_failed("model", source, error)) from None
    except RuntimeError as error:
        if "automatic conversion" not in str(error):
            raise
        raise UserError(f"cannot load the model {source.model}: {CONVERSION}") from None
    folder = folder_of(source)
    assert folder is not None, "what was loaded is on this machine"
    require_sound("model", source, loaded_fault(folder, model, report))
    if device.type == "cpu" and isinstance(source, Teacher) and source.quantization == "nf4":
        from kava.models.nf4 import serve_any_shape  # imports bitsandbytes

        serve_any_shape(model)
    if (kept := _kept(source)) is not None:
        layers = chosen_layers(kept, model.config.num_hidden_layers, source.model)
        model = cut_model(model, layers, build)
    if not without_weights:
        require_readable_cache(model, source.model, geometry(model.config))
    becomes_resident(model)
    return model

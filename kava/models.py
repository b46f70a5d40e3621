"""Load, quantise, and keep to one model: the only place where pretrained weights enter a process."""

import logging
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.utils import logging as transformers_logging

from kava.config.identity import model_path
from kava.errors import UserError

_resident: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_guarded = True


def load_teacher(source: Mapping[str, Any], device: torch.device) -> Any:
    """Load the frozen teacher.

    Parameters
    ----------
    source
        `model`, `revision`, `quantization` (`nf4`, `int8` or `none`), `double_quantization` and `dtype`, as in the
        configuration.
    device
        Where it runs; bitsandbytes computes NF4 and LLM.int8 on the CPU too.
    """
    dtype = getattr(torch, source["dtype"])
    model = _load(source, device, dtype=dtype, quantization_config=_quantization(source, dtype))
    return model.eval().requires_grad_(False)


def load_student(source: Mapping[str, Any], device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """Load the student; what is trained needs fp32 weights, since updates of 5e-5 are lost to rounding in bf16."""
    return _load(source, device, dtype=dtype)


def load_for_evaluation(source: Mapping[str, Any], device: torch.device) -> Any:
    """Load any model as a user would: in the dtype of its checkpoint, or quantised if it is a teacher."""
    model = load_teacher(source, device) if "quantization" in source else _load(source, device, dtype="auto").eval()
    # Plain greedy: instruct models ship a repetition penalty, which would punish arithmetic for repeating numbers.
    stops = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=stops.bos_token_id, eos_token_id=stops.eos_token_id, pad_token_id=stops.pad_token_id
    )
    return model


def load_model_config(source: Mapping[str, Any]) -> Any:
    """The configuration of a model, without its weights."""
    try:
        return AutoConfig.from_pretrained(model_path(source["model"]), revision=source.get("revision"))
    except (OSError, ValueError) as error:
        raise UserError(_loading_failed("configuration of", source, error)) from None


def load_tokenizer(source: Mapping[str, Any]) -> Any:
    """Load a fast tokenizer; `UserError` if it has no end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path(source["model"]), revision=source.get("revision"))
    except (OSError, ValueError) as error:
        raise UserError(_loading_failed("tokenizer of", source, error)) from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {source['model']} has no end token; set eos_token in its files")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def second_model_allowed() -> Iterator[None]:
    """Lift the one-model guard: for benchmarks that compare with keeping the teacher in memory."""
    global _guarded
    _guarded = False
    try:
        yield
    finally:
        _guarded = True


def _quantization(source: Mapping[str, Any], dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if source["quantization"] == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=source.get("double_quantization", True),
            bnb_4bit_compute_dtype=dtype,
        )
    if source["quantization"] == "int8":
        # It says with every multiplication that it rounds inputs to fp16 on their way to 8 bits.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def _load(source: Mapping[str, Any], device: torch.device, **options: Any) -> Any:
    if _guarded and (resident := next(iter(_resident), None)) is not None:
        raise RuntimeError(
            f"{resident.name_or_path} is resident: one process holds one pretrained model, or two would have to share "
            f"8 GB; free it before loading {source['model']}"
        )
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_path(source["model"]),
            revision=source.get("revision"),
            use_safetensors=True,
            device_map={"": device},
            **options,
        )
    except (OSError, ValueError) as error:
        raise UserError(_loading_failed("model", source, error)) from None
    _resident.add(model)
    return model


def _loading_failed(what: str, source: Mapping[str, Any], error: Exception) -> str:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    return (
        f"cannot load the {what} {source['model']} at revision {source.get('revision')} ({first_line}); check the "
        "path, or the network and the revision of a hub id"
    )

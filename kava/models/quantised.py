"""Checkpoints that somebody quantised already: by their `config.json`, and by the names of their tensors."""

from collections.abc import Iterable, Mapping
from typing import Any

from kava.config.models import ModelSettings, Teacher
from kava.errors import UserError

# Where a configuration says it: `compression_config` is the older name of compressed-tensors.
KEYS = ("quantization_config", "compression_config")
METHODS = {
    "awq": "AWQ", "bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed-tensors", "fp8": "FP8",
    "fbgemm_fp8": "FP8", "gguf": "GGUF", "gptq": "GPTQ", "mxfp4": "MXFP4",
}  # fmt: skip


def quantised_by(settings: Mapping[str, Any]) -> str | None:
    """What quantised the weights of a `config.json`, as it says itself; None if it says nothing."""
    for key in KEYS:
        how = settings.get(key)
        if how is None:
            continue
        if not isinstance(how, Mapping) or not how:
            return f"{key} {how!r}"
        method = str(how.get("quant_method") or "")
        # Of before methods had names, and what it says of itself then.
        if method.startswith("bitsandbytes") or {"load_in_4bit", "load_in_8bit"} & how.keys():
            bits = how.get("bnb_4bit_quant_type", "fp4") if how.get("load_in_4bit") else "int8"
            return f"bitsandbytes, {bits}"
        return METHODS.get(method, method) or f"a {key} without quant_method"
    for key in ("text_config", "llm_config"):
        if isinstance(nested := settings.get(key), Mapping) and (by := quantised_by(nested)):
            return by
    return None


def require_unquantised(source: ModelSettings, settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for a checkpoint that is quantised already, by the settings of its `config.json`.

    As a teacher it would win over the configuration's `quantization`, which is what a store's key says; a student is
    trained and exported in whole numbers of bits.
    """
    if (by := quantised_by(settings)) is None:
        return
    start = f"{source.model} is quantised already ({by})"
    if isinstance(source, Teacher):
        raise UserError(
            f"{start}, and would stay so whatever teacher.quantization ({source.quantization}) and the key of its "
            "store say; take the checkpoint that was not quantised, and let teacher.quantization (nf4, int8 or none) "
            "quantise it"
        )
    raise UserError(
        f"{start}, and a student's own weights are trained and exported; take the checkpoint that was not quantised"
    )


def quantised_names(names: Iterable[str]) -> str | None:
    """What quantised a checkpoint, by the names of its tensors; None if nothing says so."""
    ends = {name.rpartition(".")[2] for name in names}
    joined = "\n".join(names)
    if ends & {"qweight", "qzeros", "g_idx"}:
        return "GPTQ or AWQ"
    if ends & {"SCB", "absmax", "quant_map", "nested_absmax"} or "quant_state.bitsandbytes" in joined:
        return "bitsandbytes"
    if ends & {"weight_packed", "weight_shape", "weight_zero_point"}:
        return "compressed-tensors"
    if ends & {"weight_scale", "weight_scale_inv", "input_scale", "weight_scale_2"}:
        return "FP8 or compressed-tensors"
    if any(name.endswith(("_blocks", "_scales")) for name in names):
        return "MXFP4"
    return None

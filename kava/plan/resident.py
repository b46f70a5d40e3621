"""A model in memory: bytes of its weights as they are loaded, and the peak of a forward."""

from functools import cache

import torch

from kava.config.models import ModelSettings, Student, Teacher
from kava.plan.geometry import read_geometry
from kava.plan.trace import Counts, parameter_counts, trace_forward

# NF4 with double quantisation: 4 bits, one 8-bit maximum per 64 weights, one fp32 one per 256 of those.
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
PLAIN_NF4_BITS = 4 + 32 / 64
# What LLM.int8 makes of an input value (fp16, then a code), and of an output value (a 32-bit sum, then fp16).
INT8_STEP_BYTES = 3 + 6


def which(settings: ModelSettings) -> ModelSettings:
    """Which model it is, and nothing of how it is loaded."""
    fields = {name: getattr(settings, name) for name in ModelSettings.model_fields}
    return (
        Student(**fields, keep_layers=settings.keep_layers)
        if isinstance(settings, Student)
        else ModelSettings(**fields)
    )


@cache
def forward_parts(
    source: ModelSettings, dtype: str, rows: int, tokens: int, keys: str | None, hidden: bool, blocks: int = 0
) -> dict[str, int]:
    """Parts of the peak of a forward, as `trace_forward` has them; keyed by `which`."""
    return trace_forward(read_geometry(source), getattr(torch, dtype), rows, tokens, keys, hidden, blocks).parts


def loaded_bytes(source: ModelSettings, dtype: str, tokens: int) -> tuple[int, int]:
    """Bytes of a model's weights as `kava.models.load` loads them, and those that one of its matrices takes while used.

    NF4 widens the matrix; LLM.int8 narrows its inputs, `tokens` of them, and widens its outputs.
    """
    return quantised_bytes(_counts(which(source)), source, dtype, tokens)


def quantised_bytes(counts: Counts, source: ModelSettings, dtype: str, tokens: int) -> tuple[int, int]:
    """The same of parts of a model."""
    width = getattr(torch, dtype).itemsize
    others = (counts.all - counts.linear) * width
    kind = source.quantization if isinstance(source, Teacher) else "none"
    if kind == "int8":  # a byte per weight and an fp32 scale per output
        return counts.linear + 4 * counts.rows + others, INT8_STEP_BYTES * tokens * counts.widest
    if isinstance(source, Teacher) and kind == "nf4":
        bits = NF4_BITS if source.double_quantization else PLAIN_NF4_BITS
        return round(counts.linear * bits / 8) + others, counts.largest * width
    return counts.all * width, 0


@cache
def _counts(source: ModelSettings) -> Counts:
    return parameter_counts(read_geometry(source))

"""What every codec states about itself."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from kava.config.kv import Codec as CodecSettings
from kava.errors import UserError
from kava.kv import Geometry, KeysValues
from kava.store.array_spec import TOKENS_PER_GROUP, ArraySpec

SMALLEST_HALF = 2.0**-24  # subnormal
HEAD_DIMENSIONS = ("layer", "kv_head", "head_dim")
S = TypeVar("S", bound=CodecSettings)


class TokenInfo(NamedTuple):
    """What a store knows of each stored token besides its KV, int64 `[T]` (`[T, L, H]` where heads keep other tokens).

    `position` counts from the start of the example; `segment` is a value of `kava.data.tokens.Segment`.
    """

    id: Tensor
    position: Tensor
    segment: Tensor


class Calibration(NamedTuple):
    """A slice of the data from which a codec learns its parameters.

    Attributes
    ----------
    kv, info
        KV and facts of the slice's tokens.
    ids, first_layer
        Every token id of the whole data set, ascending `[U]`, and the first layer's KV `[U, 1, H, D]` of each.
    total_tokens
        Training tokens of the store, over which its fixed costs are shared.
    other_bytes
        What the store takes besides the codec's arrays and parameters: ids, indexes, moments, records.
    """

    kv: KeysValues
    info: TokenInfo
    ids: Tensor
    first_layer: KeysValues
    total_tokens: int
    other_bytes: int = 0


class Codec(ABC, Generic[S]):
    """Lossless or lossy map between KV and named arrays that any Zarr reader opens.

    Parameters
    ----------
    settings
        Of its kind.
    geometry
        Shape of the KV per token.

    Attributes
    ----------
    arrays
        Path below the split's group → `ArraySpec`. A calibrated codec has them once it has its parameters.
    calibration_tokens
        Tokens of the calibration slice that it wants; 0 for a codec without parameters.
    mixes_heads
        True if a row needs the KV of one token in all layers and heads.
    """

    kind: ClassVar[str]
    mixes_heads: ClassVar[bool] = False
    calibration_tokens: int = 0
    arrays: dict[str, ArraySpec]

    def __init__(self, settings: S, geometry: Geometry) -> None:
        self.settings, self.geometry = settings, geometry
        self.head_row = (geometry.layers, geometry.kv_heads, geometry.head_dim)

    @abstractmethod
    def encode(self, kv: KeysValues, info: TokenInfo) -> dict[str, Tensor]:
        """Encode a block that starts on a group boundary → one array per entry of `arrays`, on the block's device."""

    @abstractmethod
    def decode(self, rows: dict[str, Tensor], offset: int, info: TokenInfo) -> KeysValues:
        """Decode tokens, on the device of the rows.

        Parameters
        ----------
        rows
            Array → rows that cover the tokens.
        offset
            Position of the first token after the last group boundary before it.
        info
            Facts of the tokens; its length is T.
        """

    @property
    def bits_per_value(self) -> float:
        """Bits per value before entropy coding, scales included, parameters shared by all tokens not."""
        return sum(spec.bits_per_token for spec in self.arrays.values()) / (2 * self.geometry.channels)

    def calibrate(self, sample: Calibration) -> None:
        """Learn the parameters; only for codecs with `calibration_tokens`."""
        raise AssertionError(f"codec {self.kind} has no parameters to learn from {len(sample.ids)} ids")

    def parameters(self) -> dict[str, np.ndarray]:
        """What `calibrate` learnt, as arrays that the store keeps."""
        return {}

    def load_parameters(self, arrays: dict[str, np.ndarray], device: torch.device) -> None:
        """Take parameters from a store."""
        assert not arrays, f"codec {self.kind} has no parameters, and got {sorted(arrays)} for {device}"

    def _per_tensor(self, **specs: tuple[str, int, float]) -> dict[str, ArraySpec]:
        """Arrays of the shape of the KV, for keys and values alike: name → (dtype, tokens per row, fill value)."""
        return {
            f"{tensor}/{name}": ArraySpec(dtype, self.head_row, HEAD_DIMENSIONS, fill, per_row)
            for tensor in KeysValues._fields
            for name, (dtype, per_row, fill) in specs.items()
        }


def group_rows(block: Tensor) -> Tensor:
    """`[T, …]` → `[groups, TOKENS_PER_GROUP, …]`, the last group filled with copies of the last token."""
    missing = -len(block) % TOKENS_PER_GROUP
    whole = torch.cat((block, block[-1:].expand(missing, *block.shape[1:])))
    grouped: Tensor = whole.unflatten(0, (-1, TOKENS_PER_GROUP))
    return grouped


def dequantise_groups(codes: Tensor, scale: Tensor, minimum: Tensor, offset: int) -> Tensor:
    """minimum + scale · code, where a row of scale and minimum holds for a group of tokens; in place, group by group.

    Parameters
    ----------
    codes
        fp32 `[T, …]`; overwritten with the result.
    scale, minimum
        `[groups, …]`, the group of the first token first.
    offset
        Position of the first token in its group.
    """
    for group, (factor, summand) in enumerate(zip(scale.float(), minimum, strict=True)):
        part = codes[max(0, group * TOKENS_PER_GROUP - offset) : (group + 1) * TOKENS_PER_GROUP - offset]
        torch.addcmul(summand, factor, part, out=part)
    return codes


def quantise(values: Tensor, dim: int | tuple[int, ...], levels: int, minimum_dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Asymmetric quantisation over a dimension: codes (uint8), scale (fp16) and minimum, x ≈ minimum + scale · code.

    Scale and minimum are rounded before codes are chosen, so that their rounding costs nothing. A range beyond
    fp16 is an error, since it would decode to infinity.
    """
    lowest, highest = values.amin(dim, keepdim=True), values.amax(dim, keepdim=True)
    minimum = _round_down(lowest, (highest - lowest) / 255).to(minimum_dtype)
    spread = highest - minimum.float()
    # A constant has no range; its codes are 0 and its minimum stands for it, whatever the scale.
    scale = (spread / levels).clamp(min=SMALLEST_HALF).half()
    if not torch.isfinite(scale).all() or not torch.isfinite(minimum).all():
        raise UserError("the teacher's KV is not finite or spans more than fp16 can scale; check the teacher's dtype")
    codes = ((values - minimum.float()) / scale.float()).round().clamp(0, levels).to(torch.uint8)
    return codes, scale, minimum


def _round_down(values: Tensor, step: Tensor) -> Tensor:
    """To multiples of the power of two below a step, so that digits which say nothing are zeros, and compress."""
    unit = step.clamp(min=2.0**-100).log2().floor().exp2()
    return (values / unit).floor() * unit

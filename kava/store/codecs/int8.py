"""`int8`: asymmetric 8-bit quantisation per channel over groups of 64 tokens."""

import torch
from torch import Tensor

from kava.config.kv import Int8Codec
from kava.kv import Geometry, KeysValues
from kava.store.array_spec import TOKENS_PER_GROUP
from kava.store.codecs.base import Codec, TokenInfo, dequantise_groups, group_rows, quantise

LEVELS = 255


class Int8(Codec[Int8Codec]):
    """x ≈ minimum + scale · code, with one scale (fp16) and minimum (fp32) per channel and group.

    Per channel, since keys carry a large constant bias per channel (KIVI, arXiv 2402.02750, section 3): it goes into
    the minimum, and the levels are spent on what varies. The minimum is fp32, since a bias of 900 would be rounded by
    0.5 in fp16.
    """

    kind = "int8"

    def __init__(self, settings: Int8Codec, geometry: Geometry) -> None:
        super().__init__(settings, geometry)
        self.arrays = self._per_tensor(
            codes=("uint8", 1, 0),
            scale=("float16", TOKENS_PER_GROUP, float("nan")),
            minimum=("float32", TOKENS_PER_GROUP, float("nan")),
        )

    def encode(self, kv: KeysValues, info: TokenInfo) -> dict[str, Tensor]:
        del info
        arrays = {}
        for tensor, block in zip(kv._fields, kv, strict=True):
            codes, scale, minimum = quantise(group_rows(block.float()), 1, LEVELS, torch.float32)
            arrays[f"{tensor}/codes"] = codes.flatten(0, 1)[: len(block)]
            arrays[f"{tensor}/scale"], arrays[f"{tensor}/minimum"] = scale.squeeze(1), minimum.squeeze(1)
        return arrays

    def decode(self, rows: dict[str, Tensor], offset: int, info: TokenInfo) -> KeysValues:
        decoded = []
        for tensor in KeysValues._fields:
            codes = rows[f"{tensor}/codes"][: len(info.id)].float()
            decoded.append(dequantise_groups(codes, rows[f"{tensor}/scale"], rows[f"{tensor}/minimum"], offset))
        return KeysValues(*decoded)

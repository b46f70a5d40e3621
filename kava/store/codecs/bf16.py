"""`bf16`: the 16 bits of bfloat16, lossless for a teacher that computes in bf16."""

import torch
from torch import Tensor

from kava.config.kv import Bf16Codec
from kava.kv import Geometry, KeysValues
from kava.store.codecs.base import Codec, TokenInfo


class Bf16(Codec[Bf16Codec]):
    """bfloat16 as int16, since Zarr has no bf16; a row never written reads as NaN (0x7FC0)."""

    kind = "bf16"

    def __init__(self, settings: Bf16Codec, geometry: Geometry) -> None:
        super().__init__(settings, geometry)
        self.arrays = self._per_tensor(bits=("int16", 1, 0x7FC0))

    def encode(self, kv: KeysValues, info: TokenInfo) -> dict[str, Tensor]:
        del info
        return {
            f"{tensor}/bits": block.to(torch.bfloat16).contiguous().view(torch.int16)
            for tensor, block in zip(kv._fields, kv, strict=True)
        }

    def decode(self, rows: dict[str, Tensor], offset: int, info: TokenInfo) -> KeysValues:
        del offset  # a row is a token
        return KeysValues(
            *(rows[f"{tensor}/bits"][: len(info.id)].view(torch.bfloat16) for tensor in KeysValues._fields)
        )

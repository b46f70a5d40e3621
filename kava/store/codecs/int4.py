"""`int4`: asymmetric 4-bit quantisation, keys per channel and values per token (KIVI, arXiv 2402.02750)."""

import torch
from torch import Tensor

from kava.config.kv import Int4Codec
from kava.kv import Geometry, KeysValues
from kava.store.array_spec import TOKENS_PER_GROUP, ArraySpec
from kava.store.codecs.base import Codec, TokenInfo, dequantise_groups, group_rows, quantise

LEVELS = 15
VALUES_PER_GROUP = 64


class Int4(Codec[Int4Codec]):
    """x ≈ minimum + scale · code, two codes to a byte: those of dimensions d and d + D/2 (of an odd D, rounded up).

    Keys: one scale (fp16) and minimum (fp32) per channel and 64 tokens, as in `int8`. Values have no large bias, but
    outlying tokens: one scale and minimum (fp16) per token and group of neighbouring heads of a layer, as few heads as
    make 64 values, so that scales cost half a bit per value at most.
    """

    kind = "int4"

    def __init__(self, settings: Int4Codec, geometry: Geometry) -> None:
        super().__init__(settings, geometry)
        layers, heads, dim = self.head_row
        fitting = [n for n in range(1, heads + 1) if heads % n == 0 and n * dim >= VALUES_PER_GROUP]
        self.heads_per_group = fitting[0] if fitting else heads
        groups = (layers, heads // self.heads_per_group)
        nan = float("nan")
        head, group = ("layer", "kv_head", "head_dim"), ("layer", "head_group")
        self.arrays = {
            "keys/codes": ArraySpec("uint8", (layers, heads, -(-dim // 2)), ("layer", "kv_head", "dim_pair"), 0),
            "keys/scale": ArraySpec("float16", self.head_row, head, nan, TOKENS_PER_GROUP),
            "keys/minimum": ArraySpec("float32", self.head_row, head, nan, TOKENS_PER_GROUP),
            "values/codes": ArraySpec("uint8", (layers, heads, -(-dim // 2)), ("layer", "kv_head", "dim_pair"), 0),
            "values/scale": ArraySpec("float16", groups, group, nan),
            "values/minimum": ArraySpec("float16", groups, group, nan),
        }

    def encode(self, kv: KeysValues, info: TokenInfo) -> dict[str, Tensor]:
        del info
        key_codes, key_scale, key_minimum = quantise(group_rows(kv.keys.float()), 1, LEVELS, torch.float32)
        grouped = kv.values.float().unflatten(2, (-1, self.heads_per_group))  # [T, L, groups, heads, D]
        value_codes, value_scale, value_minimum = quantise(grouped, (3, 4), LEVELS, torch.float16)
        return {
            "keys/codes": _pack(key_codes.flatten(0, 1)[: len(kv.keys)]),
            "keys/scale": key_scale.squeeze(1),
            "keys/minimum": key_minimum.squeeze(1),
            "values/codes": _pack(value_codes.flatten(2, 3)),
            "values/scale": value_scale.flatten(2),
            "values/minimum": value_minimum.flatten(2),
        }

    def decode(self, rows: dict[str, Tensor], offset: int, info: TokenInfo) -> KeysValues:
        tokens = len(info.id)
        codes = _unpack(rows["keys/codes"][:tokens], self.geometry.head_dim)
        keys = dequantise_groups(codes, rows["keys/scale"], rows["keys/minimum"], offset)
        codes = _unpack(rows["values/codes"][:tokens], self.geometry.head_dim).unflatten(2, (-1, self.heads_per_group))
        scale, minimum = (rows[f"values/{name}"][:tokens, ..., None, None].float() for name in ("scale", "minimum"))
        return KeysValues(keys, torch.addcmul(minimum, scale, codes).flatten(2, 3))


def _pack(codes: Tensor) -> Tensor:
    low, high = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2)).chunk(2, dim=-1)
    return low | (high << 4)


def _unpack(packed: Tensor, dim: int) -> Tensor:
    return torch.cat((packed & 15, packed >> 4), dim=-1)[..., :dim].float()

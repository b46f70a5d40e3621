"""`bf16`: the 16 bits of bfloat16, lossless for a teacher that computes in bf16."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kava.cache.codecs.base import ArraySpec, Codec


class Bf16(Codec):
    """bfloat16 as int16, since Zarr has no bf16; a row never written reads as NaN (0x7FC0)."""

    kind = "bf16"
    arrays: ClassVar = {"bits": ArraySpec("int16", 1, 0x7FC0)}

    def encode(self, block_TLHD: Tensor) -> dict[str, np.ndarray]:
        return {"bits": block_TLHD.to(torch.bfloat16).contiguous().view(torch.int16).numpy()}

    def decode(self, arrays: dict[str, np.ndarray], offset: int, tokens: int) -> Tensor:
        del offset  # a row is a token
        return torch.from_numpy(np.ascontiguousarray(arrays["bits"][:tokens])).view(torch.bfloat16)

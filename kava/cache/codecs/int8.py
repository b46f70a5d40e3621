"""`int8`: asymmetric 8-bit quantisation per channel over groups of 64 tokens."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kava.cache.codecs.base import TOKENS_PER_GROUP, ArraySpec, Codec

LEVELS = 255


class Int8(Codec):
    """x ≈ minimum + scale · code, with one scale (fp16) and minimum (fp32) per channel and group.

    Per channel, since keys carry a large constant bias per channel (KIVI, arXiv 2402.02750, section 3): it goes into
    the minimum, and the levels are spent on what varies. The minimum is fp32, since a bias of 900 would be rounded by
    0.5 in fp16.
    """

    kind = "int8"
    arrays: ClassVar = {
        "codes": ArraySpec("uint8", 1, 0),
        "scale": ArraySpec("float16", TOKENS_PER_GROUP, float("nan")),
        "minimum": ArraySpec("float32", TOKENS_PER_GROUP, float("nan")),
    }

    def encode(self, block_TLHD: Tensor) -> dict[str, np.ndarray]:
        block = block_TLHD.float()
        tokens = len(block)
        missing = -tokens % TOKENS_PER_GROUP
        groups = torch.cat((block, block[-1:].expand(missing, *block.shape[1:])))
        groups = groups.unflatten(0, (-1, TOKENS_PER_GROUP))
        minimum = groups.amin(1, keepdim=True)
        # A constant channel has no range; its codes are 0 and its minimum is exact, whatever the scale.
        scale = (groups.amax(1, keepdim=True) - minimum).div(LEVELS).clamp(min=torch.finfo(torch.float16).tiny).half()
        codes = ((groups - minimum) / scale.float()).round().clamp(0, LEVELS).to(torch.uint8)
        return {
            "codes": codes.flatten(0, 1)[:tokens].numpy(),
            "scale": scale.squeeze(1).numpy(),
            "minimum": minimum.squeeze(1).numpy(),
        }

    def decode(self, arrays: dict[str, np.ndarray], offset: int, tokens: int) -> Tensor:
        group = (np.arange(tokens) + offset) // TOKENS_PER_GROUP
        scale = arrays["scale"].astype(np.float32)[group]
        return torch.from_numpy(arrays["minimum"][group] + scale * arrays["codes"][:tokens])

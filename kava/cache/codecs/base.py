"""What every codec states about itself."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

# Tokens that share a row of a codec's smallest array; blocks are encoded and decoded from such a boundary.
TOKENS_PER_GROUP = 64


@dataclass(frozen=True)
class ArraySpec:
    """One stored array `[rows, L, H, D]` of a codec.

    Attributes
    ----------
    dtype
        NumPy name.
    tokens_per_row
        1, or how many tokens share a row (a scale, say); it divides `TOKENS_PER_GROUP`.
    fill_value
        What a row that was never written reads as; chosen so that it cannot pass for data where the dtype allows.
    """

    dtype: str
    tokens_per_row: int
    fill_value: float


class Codec(ABC):
    """Lossless or lossy map between a block of KV and named arrays that any Zarr reader opens."""

    kind: ClassVar[str]
    arrays: ClassVar[dict[str, ArraySpec]]

    @abstractmethod
    def encode(self, block_TLHD: Tensor) -> dict[str, np.ndarray]:
        """Encode a block that starts on a group boundary, `[T, L, H, D]` → one array per entry of `arrays`."""

    @abstractmethod
    def decode(self, arrays: dict[str, np.ndarray], offset: int, tokens: int) -> Tensor:
        """Decode `tokens` tokens into `[T, L, H, D]`.

        Parameters
        ----------
        arrays
            Rows that cover the tokens.
        offset
            Position of the first token after the last group boundary before it.
        tokens
            T.
        """

    @property
    def bits_per_value(self) -> float:
        """Bits per value before entropy coding, scales included."""
        return sum(np.dtype(spec.dtype).itemsize * 8 / spec.tokens_per_row for spec in self.arrays.values())

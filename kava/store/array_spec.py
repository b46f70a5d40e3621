"""What a stored array is: its rows, and the axis that they stand on."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

# Tokens that share a row of a store's smallest array; blocks are encoded and decoded from such a boundary.
TOKENS_PER_GROUP = 64

Axis = Literal["token", "answer", "example"]


@dataclass(frozen=True)
class ArraySpec:
    """One stored array `[rows, *row]`.

    Attributes
    ----------
    dtype
        NumPy name.
    row
        Shape of one row.
    dimensions
        Names of the row's axes, for Zarr.
    fill_value
        What a row that was never written reads as; chosen so that it cannot pass for data where the dtype allows.
    tokens_per_row
        1, or how many tokens share a row (a scale, say); it divides `TOKENS_PER_GROUP`.
    axis
        What a row stands for: a stored token, a token of `kv.signals.topk_segments` (of the answer, unless more are
        named), or an example.
    """

    dtype: str
    row: tuple[int, ...]
    dimensions: tuple[str, ...]
    fill_value: float
    tokens_per_row: int = 1
    axis: Axis = "token"

    @property
    def bits_per_token(self) -> float:
        """Bits per row of its axis before entropy coding."""
        return np.dtype(self.dtype).itemsize * 8 * float(np.prod(self.row)) / self.tokens_per_row

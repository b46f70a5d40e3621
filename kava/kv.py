"""The vocabulary of KV caches: the geometry of a model's cache, keys and values in their two layouts, their channels.

Shape suffixes: B batch, L layers, H KV heads (never attention heads), T tokens, D head dim. A *channel* is one of a
tensor's L · H · D values per token.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

TENSORS: Final = ("keys", "values")


@dataclass(frozen=True)
class Geometry:
    """Shape of a model's KV cache per token."""

    layers: int
    kv_heads: int
    head_dim: int

    @property
    def channels(self) -> int:
        """Values of K (or of V) per token."""
        return self.layers * self.kv_heads * self.head_dim

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


class KeysValues(NamedTuple):
    """Keys and values of some tokens, alike in shape, in one of two layouts.

    *Batched*, `[B, L, H, T, D]`: as models, aligners and losses read them, examples padded on the right.
    *Ragged*, `[tokens, L, H, D]`: as selectors and codecs read them and stores keep them, one example after another.
    """

    keys: Tensor
    values: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "KeysValues":
        """The same change of both tensors."""
        return KeysValues(change(self.keys), change(self.values))


def tokens_first(tensor_BLHTD: Tensor) -> Tensor:
    """From the batched layout to `[B, T, L, H, D]`: rows as the ragged layout has them."""
    return tensor_BLHTD.permute(0, 3, 1, 2, 4)


def layers_first(tensor_BTLHD: Tensor) -> Tensor:
    """From padded rows to the batched layout, `[B, L, H, T, D]`; the inverse of `tokens_first`."""
    return tensor_BTLHD.permute(0, 2, 3, 1, 4)


def ratio_map(teacher_layers: int, student_layers: int) -> list[int]:
    """Teacher layers at the depths of a student's: i ↦ round(i · (L_t − 1) / (L_s − 1)); a single one is the last."""
    if student_layers == 1:
        return [teacher_layers - 1]
    return [round(i * (teacher_layers - 1) / (student_layers - 1)) for i in range(student_layers)]


def pad_ids(examples: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pad on the right with id 0; returns ids and mask, int64 `[B, T]`."""
    longest = max(len(ids) for ids in examples)
    ids_BT = torch.zeros(len(examples), longest, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(examples):
        ids_BT[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        mask_BT[row, : len(ids)] = 1
    return ids_BT, mask_BT


class ChannelStatistics:
    """Mean and standard deviation per channel of `[B, L, H, T, D]` tensors over unmasked tokens, in float64."""

    def __init__(self) -> None:
        self.sums: Tensor | float = 0.0  # of the first and of the second power
        self.tokens = 0

    def add(self, tensors: Iterable[Tensor], mask_BT: Tensor) -> None:
        wide = [tensor.double() * mask_BT[:, None, None, :, None] for tensor in tensors]
        powers = [torch.stack([tensor.pow(power).sum((0, 3)) for tensor in wide]) for power in (1, 2)]
        self.sums = self.sums + torch.stack(powers)
        self.tokens += int(mask_BT.sum())

    @property
    def mean(self) -> Tensor:
        """`[2, L, H, 1, D]`, float32."""
        return self.moments[0].float().unsqueeze(-2)

    @property
    def std(self) -> Tensor:
        """`[2, L, H, 1, D]`, float32."""
        mean, square = self.moments.unbind()
        return (square - mean.square()).clamp(min=0).sqrt().float().unsqueeze(-2)

    @property
    def moments(self) -> Tensor:
        """Means of the channels and of their squares, float64 `[2, 2, L, H, D]`: float32 is too coarse to subtract."""
        assert isinstance(self.sums, Tensor), "no batch was added"
        return self.sums / self.tokens

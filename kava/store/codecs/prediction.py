"""What a token's KV is expected to be, before anything is stored of it.

Before RoPE, the first layer's keys and values depend on the token id alone: they cost a table, not a stream. Deeper
layers depend on it in part, so that the mean over a token's occurrences is a start; and the first tokens of all
examples are alike, since a template begins them.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from kava.store.codecs.base import Calibration, TokenInfo

# The first layer counts as a function of the id if no more than this share of its variance is left.
EXPLAINED: Final = 1e-3
# Steps of a table's entries per standard deviation of its column: error 0.02σ, below any target that pays.
LEVELS: Final = 127
REACH: Final = 5.0


@dataclass(frozen=True)
class IdTable:
    """One row of int8 entries per token id; ids without a row are expected at the mean.

    Attributes
    ----------
    ids
        Ascending token ids, int32 `[U]`.
    codes
        int8 `[U, n]`.
    step
        Value of one level per column, fp32 `[n]`.
    """

    ids: Tensor
    codes: Tensor
    step: Tensor

    @classmethod
    def of(cls, ids: Tensor, rows: Tensor) -> "IdTable":
        """Round rows `[U, n]` to a table."""
        reach = torch.minimum(rows.abs().amax(0), REACH * rows.square().mean(0).sqrt()) if len(rows) else rows.sum(0)
        step = (reach / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
        return cls(ids.int(), (rows / step).round().clamp(-LEVELS, LEVELS).to(torch.int8), step)

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows of ids `[T]` → `[T, n]`; zeros for an id that has none."""
        if not len(self.ids):
            return self.step.new_zeros(len(ids), self.codes.shape[1])
        row = torch.searchsorted(self.ids, ids.int()).clamp(max=len(self.ids) - 1)
        known = (self.ids[row] == ids)[:, None]
        return self.codes[row].float().mul_(self.step).mul_(known)


class Predictor:
    """Expected KV per token, `[T, C]` over C = layers × {K, V} × heads × dim channels.

    Attributes
    ----------
    mean
        Mean over the calibration slice, fp32 `[C]`.
    exact
        Table of the leading channels that the id determines; of no columns where there are none.
    usual
        Table of the other channels: means over the occurrences of an id.
    first
        What the other channels of the first positions of an example have in its place, fp16 `[positions, columns]`.
    """

    def __init__(self, mean: Tensor, exact: IdTable, usual: IdTable, first: Tensor) -> None:
        self.mean, self.exact, self.usual, self.first = mean, exact, usual, first

    def __call__(self, info: TokenInfo) -> Tensor:
        return self._deviation(info, self.usual(info.id)).add_(self.mean)

    def _deviation(self, info: TokenInfo, usual: Tensor) -> Tensor:
        """Expected difference from the mean; overwrites the first positions of `usual`."""
        early = torch.nonzero(info.position < len(self.first)).flatten()
        usual.index_copy_(0, early, self.first[info.position[early]].float())
        return torch.cat((self.exact(info.id), usual), dim=1)

    @classmethod
    def fit(cls, sample: Calibration, channels: Tensor, positions: int) -> tuple["Predictor", Tensor]:
        """Learn from a slice; also returns what is left of each of its tokens, `[T, C]`.

        Parameters
        ----------
        channels
            The slice's KV as fp32 `[T, C]`.
        positions
            How many first tokens have a mean of their own.
        """
        mean = channels.mean(0, dtype=torch.float64).float()
        centred, info = channels - mean, sample.info
        exact = _exact(sample, centred, mean)
        others = centred[:, exact.codes.shape[1] :]
        first = torch.zeros(positions, others.shape[1], dtype=torch.float16, device=mean.device)
        for position in range(positions):
            if (info.position == position).any():
                first[position] = others[info.position == position].mean(0).half()
        usual, left_out = _usual(info.id, info.position >= positions, others)
        predictor = cls(mean, exact, usual, first)
        return predictor, centred - predictor._deviation(info, left_out)

    def parameters(self) -> dict[str, np.ndarray]:
        tables = {"exact": self.exact, "usual": self.usual}
        arrays = {f"{name}_{part}": getattr(table, part) for name, table in tables.items() for part in _PARTS}
        return {name: x.cpu().numpy() for name, x in ({"mean": self.mean, "first": self.first} | arrays).items()}

    @classmethod
    def load(cls, arrays: dict[str, Any]) -> "Predictor":
        exact, usual = (IdTable(*(arrays[f"{name}_{part}"] for part in _PARTS)) for name in ("exact", "usual"))
        return cls(arrays["mean"], exact, usual, arrays["first"])


_PARTS = ("ids", "codes", "step")


def _exact(sample: Calibration, centred: Tensor, mean: Tensor) -> IdTable:
    """Table of the first layer, or one of no columns if the id does not determine it."""
    alone = torch.stack(sample.first_layer, dim=2).flatten(1).float()
    table = IdTable.of(sample.ids, alone - mean[: alone.shape[1]])
    start = centred[:, : alone.shape[1]]
    left = (start - table(sample.info.id)).square().sum()
    return table if left <= EXPLAINED * start.square().sum() else IdTable.of(sample.ids[:0], alone[:0, :0])


def _usual(ids: Tensor, later: Tensor, centred: Tensor) -> tuple[IdTable, Tensor]:
    """Table of means per id, shrunk by one occurrence at the overall mean, and each token's mean over the others.

    What the table would say had it not seen the token tells how much is left of tokens outside the slice.
    """
    distinct, row = torch.unique(ids, return_inverse=True)
    count = torch.bincount(row[later], minlength=len(distinct))
    total = centred.new_zeros(len(distinct), centred.shape[1]).index_add_(0, row[later], centred[later])
    repeated = count >= 2
    table = IdTable.of(distinct[repeated], total[repeated] / (count[repeated, None] + 1))
    counted = later & repeated[row]
    others = (total[row] - centred) / count[row, None].clamp(min=1) * counted[:, None]
    return table, others

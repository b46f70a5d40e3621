"""What goes into one shard of a store, encoded and written array by array."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kava.errors import UserError
from kava.kv import KeysValues
from kava.store.array_spec import ArraySpec
from kava.store.codecs import Codec, TokenInfo
from kava.store.layout import Rows

# Tokens that are encoded at a time: the temporaries of a whole shard would take gigabytes.
ENCODE_TOKENS: Final = 1024


class ShardContent(NamedTuple):
    """What goes into one shard: KV and facts of its tokens, in their rows, and the signals by array name."""

    kv: KeysValues
    info: TokenInfo
    signals: dict[str, Tensor]

    def encoded(self, codec: Codec[Any], device: torch.device) -> dict[str, np.ndarray]:
        """Rows of every array of the shard, encoded on a device."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in codec.arrays}
        for first in range(0, len(self.kv.keys), ENCODE_TOKENS):
            part = slice(first, first + ENCODE_TOKENS)
            kv = KeysValues(*(tensor[part].to(device) for tensor in self.kv))
            info = TokenInfo(*(tensor[part].to(device) for tensor in self.info))
            require_finite(kv)
            for name, rows in codec.encode(kv, info).items():
                parts[name].append(rows.cpu().numpy())
        arrays = {name: np.concatenate(of_array) for name, of_array in parts.items()}
        arrays |= {f"token/{name}": tensor.numpy() for name, tensor in self.info._asdict().items()}
        return arrays | {name: tensor.numpy() for name, tensor in self.signals.items()}

    def moments(self) -> dict[str, np.ndarray]:
        """Sum and sum of squares per channel of keys and values, float64 `[2, L, H, D]`."""
        found = {}
        for tensor, block in self.kv._asdict().items():
            total = torch.zeros(2, *block.shape[1:], dtype=torch.float64)
            for part in block.split(ENCODE_TOKENS):
                exact = part.double()
                total += torch.stack((exact.sum(0), exact.square().sum(0)))
            found[tensor] = total.numpy()
        return found


def channel_statistics(moments: np.ndarray, tokens: int) -> dict[str, np.ndarray]:
    """Mean and standard deviation per channel, fp32 `[L, H, D]`, from the moments of all shards."""
    first, second = moments.sum(axis=0) / tokens
    deviation = np.sqrt(np.maximum(second - first**2, 0.0))
    return {"mean": first.astype(np.float32), "std": deviation.astype(np.float32)}


def require_finite(kv: KeysValues) -> None:
    """Raise `UserError` for KV that is not finite: some codecs would turn it into numbers that look like others."""
    for name, tensor in kv._asdict().items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"the teacher's {name} are not finite; check its weights, or set teacher.dtype (fp16 models overflow)"
            )


def write_arrays(
    group: Any, shard: int, specs: Mapping[str, ArraySpec], axes: Mapping[str, Rows], data: Mapping[str, np.ndarray]
) -> None:
    """Write a shard's part of every array of a split, each in one assignment; unused rows hold the fill value.

    Each has a file: Zarr would write none for a shard that is all fill value (codes of constant KV, or importance where
    no token was a candidate), and it could not be told from one that is lost.
    """
    for name, spec in specs.items():
        array, rows = group[name], data[name]
        first = shard * axes[spec.axis].per_shard // spec.tokens_per_row
        whole = np.full((min(array.shards[0], array.shape[0] - first), *spec.row), spec.fill_value, spec.dtype)
        whole[: len(rows)] = rows
        if np.array_equal(whole, np.full_like(whole, spec.fill_value), equal_nan=True):
            array = array.with_config({"write_empty_chunks": True})
        array[first : first + len(whole)] = whole

"""Read a sealed KV store: one example at a time, contiguous slices only."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kava.cache.capture import Geometry
from kava.cache.codecs import TOKENS_PER_GROUP, make_codec
from kava.cache.layout import TENSORS, open_group
from kava.errors import UserError
from kava.files import read_json

# Encoded splits up to this size are read once and kept; a GSM8K store of the reference pair is not.
IN_MEMORY_BYTES = 2 << 30


class StoreReader:
    """A finished store.

    Parameters
    ----------
    manifest
        Path of its `manifest.json`.

    Attributes
    ----------
    geometry
        Shape of the teacher's KV.
    mean, std
        Channel statistics over the training tokens, `{"keys", "values"}` → float32 `[L, H, D]`.
    """

    def __init__(self, manifest: Path) -> None:
        self.manifest = read_json(manifest)
        self.geometry = Geometry(**self.manifest["geometry"])
        self.codec = make_codec(
            {name: value for name, value in self.manifest["codec"].items() if name != "bits_per_value"}
        )
        self.keys_form: str = self.manifest["spec"]["keys"]
        self._root = open_group(manifest.parent / "store.zarr", "r")
        self._splits: dict[str, _Split] = {}
        statistics = self._root["train"]
        self.mean = {tensor: torch.from_numpy(statistics[f"{tensor}/mean"][:]) for tensor in TENSORS}
        self.std = {tensor: torch.from_numpy(statistics[f"{tensor}/std"][:]) for tensor in TENSORS}

    def read(self, split: str, example: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one example, each `[T, L, H, D]`, decoded.

        Raises
        ------
        UserError
            A chunk that fails its checksum or is missing.
        """
        if split not in self._splits:
            self._splits[split] = _Split(self._root[split], list(self.codec.arrays))
        of_split = self._splits[split]
        start, tokens = int(of_split.start[example]), int(of_split.length[example])
        offset = start % TOKENS_PER_GROUP
        decoded = []
        for tensor in TENSORS:
            rows = {}
            for name, spec in self.codec.arrays.items():
                first, last = start // spec.tokens_per_row, -(-(start + tokens) // spec.tokens_per_row)
                rows[name] = _checked(of_split.arrays[tensor][name], first, last)
            block = self.codec.decode(rows, offset, tokens)
            if not torch.isfinite(block).all():
                raise UserError(f"{tensor} of {split} example {example} are not finite, as where {_MISSING}")
            decoded.append(block)
        return decoded[0], decoded[1]


_MEND = "delete the store's manifest.json and run extract: it rewrites the broken shards and keeps the others"
_MISSING = f"a shard is missing; {_MEND}"


class _Split:
    def __init__(self, group: Any, names: list[str]) -> None:
        self.start = group["start"][:]
        self.length = group["length"][:]
        arrays = {tensor: {name: group[f"{tensor}/{name}"] for name in names} for tensor in TENSORS}
        size = sum(array.nbytes for of_tensor in arrays.values() for array in of_tensor.values())
        if size <= IN_MEMORY_BYTES:
            arrays = {
                tensor: {name: _checked(array, 0, array.shape[0]) for name, array in of_tensor.items()}
                for tensor, of_tensor in arrays.items()
            }
        self.arrays: dict[str, dict[str, Any]] = arrays


def _checked(array: Any, first: int, last: int) -> np.ndarray:
    """Rows of an array, on disk or in memory; a chunk that cannot be decoded is a `UserError`."""
    try:
        return np.asarray(array[first:last])
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"the store's array {array.path} cannot be read ({error}); {_MEND}") from error

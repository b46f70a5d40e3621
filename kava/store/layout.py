"""Where everything lies in a KV store.

    <folder>/manifest.json                written last; a store without it is unfinished
    <folder>/quarantine/1/…               what was put aside: damaged, or of another store
    <folder>/store.zarr/zarr.json         key and specification, as attribute `kava`
    <folder>/shards/<split>-00003.json    key and checksums of one finished shard
    <folder>/store.zarr/parameters/…      what a calibrated codec learnt, with its record shards/parameters.json
    <folder>/store.zarr/<split>/index/<axis>        [examples, 2], first row and number of rows of each example
    <folder>/store.zarr/<split>/keys/…, values/…    the codec's arrays
    <folder>/store.zarr/<split>/token/…             id, segment and position of each stored token
    <folder>/store.zarr/<split>/signals/…           optional: importance, hidden states, top-k logits
    <folder>/store.zarr/<split>/keys/moments        [shards, 2, L, H, D], sum and sum of squares per shard

Examples are packed into shards of `shard_tokens` rows in their order; one never crosses a shard boundary, so the
rows at the end of a shard may stay unused. The Zarr shard files of one number hold the same examples in every array:
they are written, checked and resumed together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from kava.errors import UserError
from kava.kv import TENSORS, Geometry
from kava.store.array_spec import TOKENS_PER_GROUP, ArraySpec

# Channel statistics are those of the training split.
STATISTICS: Final = "train"
# Plain bf16 of a tiny model's chunk: half for keys and half for values, each a block of the compressor.
SMALL_CHUNK_BYTES: Final = 1 << 20
BLOCK_BYTES: Final = SMALL_CHUNK_BYTES // 2
# Rows per chunk of the other axes; an example has a few answer tokens, and is read alone.
AXIS_CHUNKS: Final = {"answer": 64, "example": 1}


@dataclass(frozen=True)
class Rows:
    """Rows of an axis: where each example's stand.

    Attributes
    ----------
    start
        First row of each example, int64 `[N]`.
    length
        Rows of each example, int64 `[N]`.
    per_shard
        Rows that a shard has room for.
    """

    start: np.ndarray
    length: np.ndarray
    per_shard: int

    @property
    def total(self) -> int:
        """Length of the axis: all shards but the last are whole."""
        return int(self.start[-1] + self.length[-1]) if len(self.start) else 0

    def used(self, members: np.ndarray) -> int:
        """Rows that the examples of a shard take, from its start to the end of the last."""
        last = members[-1]
        return int(self.start[last] % self.per_shard + self.length[last])


@dataclass(frozen=True)
class Packing:
    """Examples of a split packed into shards.

    Attributes
    ----------
    tokens
        Rows of the token axis.
    shard
        Shard of each example, int64 `[N]`.
    """

    tokens: Rows
    shard: np.ndarray

    @classmethod
    def pack(cls, lengths: list[int], shard_tokens: int) -> "Packing":
        """Fill shards in order; the next example that does not fit opens the next shard."""
        if lengths and max(lengths) > shard_tokens:
            raise UserError(
                f"an example of {max(lengths)} tokens does not fit a shard of {shard_tokens}; raise kv.shard_tokens"
            )
        assert all(lengths), "an example without tokens has no place in a store"
        start, position = [], 0
        for length in lengths:
            left = shard_tokens - position % shard_tokens
            if length > left:
                position += left
            start.append(position)
            position += length
        rows = Rows(np.array(start, dtype=np.int64), np.array(lengths, np.int64), shard_tokens)
        return cls(rows, rows.start // shard_tokens)

    @property
    def shards(self) -> int:
        return int(self.shard[-1]) + 1 if len(self.shard) else 0

    @cached_property
    def _bounds(self) -> np.ndarray:
        return np.searchsorted(self.shard, np.arange(self.shards + 1))

    def members(self, shard: int) -> np.ndarray:
        """Examples of a shard, in order."""
        return np.arange(self._bounds[shard], self._bounds[shard + 1])

    def axis(self, lengths: list[int], multiple_of: int) -> Rows:
        """Rows of another axis, with room in each shard for what any shard needs."""
        own = [np.array(lengths, np.int64)[self.members(shard)] for shard in range(self.shards)]
        needed = max((int(of_shard.sum()) for of_shard in own), default=0)
        per_shard = -(-max(needed, 1) // multiple_of) * multiple_of
        starts = [shard * per_shard + np.cumsum(of_shard) - of_shard for shard, of_shard in enumerate(own)]
        return Rows(np.concatenate(starts) if starts else np.zeros(0, np.int64), np.array(lengths, np.int64), per_shard)


def create_split(
    group: Any, packing: Packing, axes: Mapping[str, Rows], arrays: Mapping[str, ArraySpec], geometry: Geometry
) -> None:
    """Create the arrays of a split at their final shapes, in an empty group."""
    for axis, rows in axes.items():
        index = np.stack((rows.start, rows.length), axis=1)
        write_whole(group, f"index/{axis}", index, ["example", "start_length"])
    chunk = chunk_tokens(geometry, packing.tokens.per_shard)
    for name, spec in arrays.items():
        rows, per_row = axes[spec.axis], spec.tokens_per_row
        per_chunk = chunk if spec.axis == "token" else AXIS_CHUNKS[spec.axis]
        _create(
            group,
            name,
            shape=(-(-rows.total // per_row), *spec.row),
            chunks=(per_chunk // per_row, *spec.row),
            shards=(rows.per_shard // per_row, *spec.row),
            dtype=spec.dtype,
            fill_value=spec.fill_value,
            dimension_names=[spec.axis if per_row == 1 else f"{spec.axis}_group", *spec.dimensions],
            attributes={"tokens_per_row": per_row},
        )
    per_token = (geometry.layers, geometry.kv_heads, geometry.head_dim)
    for tensor in TENSORS if group.basename == STATISTICS else ():
        _create(
            group,
            f"{tensor}/moments",
            shape=(packing.shards, 2, *per_token),
            chunks=(1, 2, *per_token),
            dtype="float64",
            fill_value=float("nan"),
            dimension_names=["shard", "power", "layer", "kv_head", "head_dim"],
        )


def chunk_tokens(geometry: Geometry, shard_tokens: int) -> int:
    """Tokens per chunk, the least that can be read.

    64 for real models: an example of t tokens then reads (t + 63) / t of its bytes on average, 1.35 for the 182 of
    GSM8K. A tiny model's chunks are doubled up to 1 MiB of bf16: its tokens repeat (the first layer's KV is a function
    of the id), which a compressor sees within a chunk only, and each chunk costs Zarr half a millisecond whatever its
    size.
    """
    tokens = TOKENS_PER_GROUP
    bytes_per_token = 2 * geometry.channels * 2
    while 2 * tokens * bytes_per_token <= SMALL_CHUNK_BYTES and shard_tokens % (2 * tokens) == 0:
        tokens *= 2
    return tokens


def shard_file(split: str, name: str, shard: int, spec: ArraySpec) -> str:
    """Path under `store.zarr` of one array's part of a shard."""
    return f"{split}/{name}/c/{shard}" + "/0" * len(spec.row)


def shard_files(split: str, shard: int, arrays: Mapping[str, ArraySpec]) -> list[str]:
    """Paths under `store.zarr` of the files that make up one shard."""
    names = [shard_file(split, name, shard, spec) for name, spec in arrays.items()]
    moments = [f"{split}/{tensor}/moments/c/{shard}/0/0/0/0" for tensor in TENSORS]
    return names + moments if split == STATISTICS else names


def shard_name(split: str, shard: int) -> str:
    return f"{split}-{shard:05d}"


def shard_record(folder: Path, split: str, shard: int) -> Path:
    return folder / "shards" / f"{shard_name(split, shard)}.json"


def write_whole(group: Any, name: str, data: np.ndarray, dimensions: list[str] | None = None) -> None:
    """Write a small array as one chunk."""
    shape = tuple(max(1, size) for size in data.shape)
    _create(group, name, shape=data.shape, chunks=shape, dtype=data.dtype.name, dimension_names=dimensions)
    group[name][...] = data


def _create(group: Any, name: str, **options: Any) -> None:
    itemsize = np.dtype(options["dtype"]).itemsize
    group.create_array(
        name,
        # Byte shuffle, not bitshuffle: bf16 KV compresses 1.49× with the one and 1.02× with the other.
        compressors=[
            BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=itemsize, blocksize=BLOCK_BYTES),
            Crc32cCodec(),
        ],
        **options,
    )


def open_group(path: Path, mode: str) -> Any:
    return zarr.open_group(path, mode=mode, zarr_format=3)

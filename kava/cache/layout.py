"""Where everything lies in a KV store.

    <folder>/manifest.json            written last; a store without it is unfinished
    <folder>/shards/<split>-00003.json    checksums of one finished shard
    <folder>/store.zarr/<split>/start, length       first token and number of tokens of each example
    <folder>/store.zarr/<split>/keys/<array>        [rows, L, H, D], the codec's arrays; `values/` alike
    <folder>/store.zarr/<split>/keys/moments        [shards, 2, L, H, D], sum and sum of squares per shard

Examples are packed into shards of `shard_tokens` tokens in their order; one never crosses a shard boundary, so the
rows at the end of a shard may stay unused. A Zarr shard file holds the same tokens in every array: it is the unit of
writing, of checking and of resume.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from kava.cache.capture import Geometry
from kava.cache.codecs import TOKENS_PER_GROUP, Codec
from kava.errors import UserError

TENSORS: Final = ("keys", "values")
SMALL_CHUNK_BYTES = 128 << 10


@dataclass(frozen=True)
class Packing:
    """Examples packed into shards.

    Attributes
    ----------
    start
        First token of each example on the store's token axis, int64 `[N]`.
    length
        Tokens of each example, int32 `[N]`.
    shard
        Shard of each example, int64 `[N]`.
    shard_tokens
        Rows per shard.
    """

    start: np.ndarray
    length: np.ndarray
    shard: np.ndarray
    shard_tokens: int

    @classmethod
    def pack(cls, lengths: list[int], shard_tokens: int) -> "Packing":
        """Fill shards in order; the next example that does not fit opens the next shard."""
        if lengths and max(lengths) > shard_tokens:
            raise UserError(
                f"an example of {max(lengths)} tokens does not fit a shard of {shard_tokens}; raise kv.shard_tokens"
            )
        start, position = [], 0
        for length in lengths:
            left = shard_tokens - position % shard_tokens
            if length > left:
                position += left
            start.append(position)
            position += length
        start_array = np.array(start, dtype=np.int64)
        return cls(start_array, np.array(lengths, np.int32), start_array // shard_tokens, shard_tokens)

    @property
    def shards(self) -> int:
        return int(self.shard[-1]) + 1 if len(self.shard) else 0

    @property
    def rows(self) -> int:
        """Length of the token axis: all shards but the last are whole."""
        return int(self.start[-1] + self.length[-1]) if len(self.start) else 0

    def members(self, shard: int) -> list[int]:
        """Examples of a shard, in order."""
        return [int(index) for index in np.flatnonzero(self.shard == shard)]

    def used_rows(self, shard: int) -> int:
        """Rows from the shard's start to the end of its last example."""
        last = self.members(shard)[-1]
        return int(self.start[last] + self.length[last]) - shard * self.shard_tokens


def create_split(group: Any, packing: Packing, geometry: Geometry, codec: Codec) -> None:
    """Create the arrays of a split at their final shapes, those that do not exist yet."""
    per_token = (geometry.layers, geometry.kv_heads, geometry.head_dim)
    chunk = chunk_tokens(geometry, codec, packing.shard_tokens)
    for name, data in (("start", packing.start), ("length", packing.length)):
        _create(group, name, shape=data.shape, chunks=data.shape, dtype=data.dtype.name, dimension_names=["example"])
        group[name][:] = data  # always: a kill may have come between the array's metadata and its data
    for tensor in TENSORS:
        for name, spec in codec.arrays.items():
            per_row = spec.tokens_per_row
            rows = -(-packing.rows // per_row)
            _create(
                group,
                f"{tensor}/{name}",
                shape=(rows, *per_token),
                chunks=(chunk // per_row, *per_token),
                shards=(packing.shard_tokens // per_row, *per_token),
                dtype=spec.dtype,
                fill_value=spec.fill_value,
                dimension_names=["token" if per_row == 1 else "token_group", "layer", "kv_head", "head_dim"],
                attributes={"tokens_per_row": per_row},
            )
        _create(
            group,
            f"{tensor}/moments",
            shape=(packing.shards, 2, *per_token),
            chunks=(1, 2, *per_token),
            dtype="float64",
            fill_value=float("nan"),
            dimension_names=["shard", "power", "layer", "kv_head", "head_dim"],
        )


def chunk_tokens(geometry: Geometry, codec: Codec, shard_tokens: int) -> int:
    """Tokens per chunk, the least that can be read.

    64 for real models: an example of t tokens then reads (t + 63) / t of its bytes on average, 1.35 for the 182 of
    GSM8K. A tiny model's chunks are doubled up to 128 KiB, since each costs Zarr half a millisecond whatever its size.
    """
    tokens = TOKENS_PER_GROUP
    bytes_per_token = geometry.channels * codec.bits_per_value / 8
    while 2 * tokens * bytes_per_token <= SMALL_CHUNK_BYTES and shard_tokens % (2 * tokens) == 0:
        tokens *= 2
    return tokens


def shard_files(split: str, shard: int, codec: Codec) -> list[str]:
    """Paths under `store.zarr` of the files that make up one shard."""
    names = [f"{split}/{tensor}/{name}/c/{shard}/0/0/0" for tensor in TENSORS for name in codec.arrays]
    return names + [f"{split}/{tensor}/moments/c/{shard}/0/0/0/0" for tensor in TENSORS]


def shard_record(folder: Path, split: str, shard: int) -> Path:
    return folder / "shards" / f"{split}-{shard:05d}.json"


def _create(group: Any, name: str, **options: Any) -> None:
    if name in group:
        return
    itemsize = np.dtype(options["dtype"]).itemsize
    group.create_array(
        name,
        # Byte shuffle, not bitshuffle: bf16 KV compresses 1.49× with the one and 1.02× with the other.
        compressors=[
            BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=itemsize, blocksize=524288),
            Crc32cCodec(),
        ],
        # A chunk that is all fill value would not be written, and could not be told from a missing one.
        config={"write_empty_chunks": True},
        **options,
    )


def open_group(path: Path, mode: str) -> Any:
    return zarr.open_group(path, mode=mode, zarr_format=3)

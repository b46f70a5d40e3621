"""Write a KV store shard by shard, resume it, and seal it with its manifest."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kava.cache.capture import Geometry
from kava.cache.codecs import make_codec
from kava.cache.layout import TENSORS, Packing, create_split, open_group, shard_files, shard_record
from kava.errors import UserError
from kava.files import read_json, remove_partial, sha256_file, sha256_json, write_json


class StoreWriter:
    """A store under construction.

    Parameters
    ----------
    folder
        Folder of the store; created if missing, continued if not.
    key
        Everything that the bytes depend on; kept in the manifest.
    lengths
        Split → tokens per example.
    geometry
        Shape of the teacher's KV.
    """

    def __init__(self, folder: Path, key: dict[str, Any], lengths: dict[str, list[int]], geometry: Geometry) -> None:
        self.folder = folder
        self.key = key
        self.geometry = geometry
        self.codec = make_codec(key["codec"])
        self.packings = {split: Packing.pack(of_split, key["shard_tokens"]) for split, of_split in lengths.items()}
        self.lengths = lengths

    def open(self) -> None:
        """Create what is missing, remove the litter of a killed run, and check that the disk is large enough.

        Raises
        ------
        UserError
            The disk has less room than the unfinished shards need before compression.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partial(self.folder)
        rows = sum(self.packings[split].used_rows(shard) for split, shard in self.pending())
        needed = int(rows * 2 * self.geometry.channels * self.codec.bits_per_value / 8)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"the store needs up to {needed / 1e9:.1f} GB in {self.folder}, {free / 1e9:.1f} GB are free; make "
                "room, point cache_dir to another disk, or choose a smaller kv.codec; finished shards are kept"
            )
        root = open_group(self.folder / "store.zarr", "a")
        for split, packing in self.packings.items():
            create_split(root.require_group(split), packing, self.geometry, self.codec)
        self.root = root

    def pending(self) -> list[tuple[str, int]]:
        """Shards `(split, number)` that have no record, or whose files are not those of their record."""
        return [
            (split, shard)
            for split, packing in self.packings.items()
            for shard in range(packing.shards)
            if not self._is_complete(split, shard)
        ]

    def write_shard(self, split: str, shard: int, keys_TLHD: Tensor, values_TLHD: Tensor) -> None:
        """Write one shard: its arrays, then the record that says it is there.

        Parameters
        ----------
        keys_TLHD, values_TLHD
            The shard's tokens from its start to the end of its last example, `[used_rows, L, H, D]`, on the CPU.
        """
        packing = self.packings[split]
        used = packing.used_rows(shard)
        for tensor, block in zip(TENSORS, (keys_TLHD, values_TLHD), strict=True):
            assert len(block) == used, f"shard {split}-{shard} has {used} rows, got {len(block)}"
            group = self.root[split][tensor]
            for name, rows in self.codec.encode(block).items():
                spec = self.codec.arrays[name]
                first = shard * packing.shard_tokens // spec.tokens_per_row
                array = group[name]
                # One assignment for the whole shard file; rows after the last example hold the fill value.
                height = min(array.shards[0], array.shape[0] - first)
                whole = np.full((height, *rows.shape[1:]), spec.fill_value, spec.dtype)
                whole[: len(rows)] = rows
                array[first : first + height] = whole
            exact = block.double()
            group["moments"][shard] = torch.stack((exact.sum(0), exact.square().sum(0))).numpy()
        write_json(shard_record(self.folder, split, shard), {"rows": used, "files": self._checksums(split, shard)})

    def seal(self) -> dict[str, Any]:
        """Write the channel statistics and, last, the manifest; returns the manifest."""
        self._write_statistics()
        records = {
            f"{split}-{shard:05d}": read_json(shard_record(self.folder, split, shard))
            for split, packing in self.packings.items()
            for shard in range(packing.shards)
        }
        tokens = sum(sum(of_split) for of_split in self.lengths.values())
        raw = tokens * 2 * self.geometry.channels * 2
        size = sum(file.stat().st_size for file in self.folder.glob("store.zarr/**/*") if file.is_file())
        manifest = {
            "stage": "extract",
            "name": self.folder.name.rsplit("-", 1)[0],
            "key": sha256_json(self.key)[:16],
            "spec": self.key,
            "geometry": self.geometry.to_dict(),
            "codec": {**self.key["codec"], "bits_per_value": self.codec.bits_per_value},
            "examples": {split: len(of_split) for split, of_split in self.lengths.items()},
            "tokens": tokens,
            "bytes": size,
            "raw_bf16_bytes": raw,
            "ratio": size / raw,
            "shards": records,
        }
        write_json(self.folder / "manifest.json", manifest)
        return manifest

    def _write_statistics(self) -> None:
        """Mean and standard deviation per channel over the training tokens, from the shards' moments."""
        tokens = sum(self.lengths["train"])
        for tensor in TENSORS:
            group = self.root["train"][tensor]
            first, second = group["moments"][:].sum(axis=0) / tokens
            deviation = np.sqrt(np.maximum(second - first**2, 0.0))
            for name, data in (("mean", first), ("std", deviation)):
                # Overwriting would leave a moment without the array; equal input gives equal bytes anyway.
                if name not in group:
                    group.create_array(
                        name,
                        shape=data.shape,
                        chunks=data.shape,
                        dtype="float32",
                        dimension_names=["layer", "kv_head", "head_dim"],
                        config={"write_empty_chunks": True},
                    )
                group[name][:] = data.astype(np.float32)

    def _is_complete(self, split: str, shard: int) -> bool:
        record = shard_record(self.folder, split, shard)
        if not record.is_file():
            return False
        files = read_json(record)["files"]
        paths = {name: self.folder / "store.zarr" / name for name in files}
        return all(path.is_file() for path in paths.values()) and files == self._checksums(split, shard)

    def _checksums(self, split: str, shard: int) -> dict[str, dict[str, Any]]:
        paths = {name: self.folder / "store.zarr" / name for name in shard_files(split, shard, self.codec)}
        return {name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for name, path in paths.items()}

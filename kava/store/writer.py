"""Write a KV store shard by shard, alone or beside other processes, resume it, and seal it with its manifest."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kava.errors import UserError
from kava.files import (
    canonical_json,
    checksums,
    holds_json,
    read_json,
    remove_partial,
    sha256_file,
    sha256_json,
    write_json,
)
from kava.kv import TENSORS
from kava.locks import claim, locked
from kava.provenance import library_versions
from kava.store.contents import Contents
from kava.store.layout import (
    STATISTICS,
    Packing,
    Rows,
    create_split,
    open_group,
    shard_files,
    shard_name,
    shard_record,
    write_whole,
)
from kava.store.quarantine import Quarantine
from kava.store.reader import read_parameters
from kava.store.shard import ShardContent, channel_statistics, write_arrays
from kava.store.structure import Structure

Shard = tuple[str, int]


class StoreWriter:
    """A store under construction; several processes may work on one at the same time.

    Parameters
    ----------
    folder
        Folder of the store; created if missing, continued if not.
    contents
        What the store holds.
    segments
        Split → segment of every token of every example.
    device
        Where to encode.
    """

    def __init__(
        self,
        folder: Path,
        contents: Contents,
        segments: dict[str, list[np.ndarray]],
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder, self.contents, self.device = folder, contents, torch.device(device)
        self.codec, self.geometry = contents.codec, contents.geometry
        self.key_name = sha256_json(contents.settings.model_dump())[:16]
        self.packings: dict[str, Packing] = {}
        self.axes: dict[str, dict[str, Rows]] = {}
        for split, of_split in segments.items():
            self.packings[split], self.axes[split] = contents.pack(of_split, split)
        self._parameters_sha256: str | None = None
        self._structure: set[str] = set()

    @property
    def shards(self) -> list[Shard]:
        return [(split, shard) for split, packing in self.packings.items() for shard in range(packing.shards)]

    def open(self) -> bool:
        """Take the folder, and put aside what is of another store; returns whether the codec needs calibration."""
        with self.exclusive():
            quarantine = Quarantine(self.folder)
            quarantine.foreign_store(self.key_name)
            quarantine.damaged_manifest()
            self._begin()
            if not self.codec.calibration_tokens or self._load_parameters(quarantine):
                self._create_arrays()
                return False
            return True

    def exclusive(self) -> Any:
        """Context that no other process is in; waits for it."""
        return locked(self.folder / "locks" / "store.lock")

    def calibrated(self) -> bool:
        """Whether another process has calibrated the codec meanwhile; asked in `exclusive`."""
        if self._load_parameters(Quarantine(self.folder)):
            self._create_arrays()
            return True
        return False

    def write_parameters(self) -> None:
        """Keep what the codec has learnt; called in `exclusive`."""
        if "parameters" in self.root:
            del self.root["parameters"]  # half of them, of a killed run: there is no record
        for name, array in self.codec.parameters().items():
            write_whole(self.root, f"parameters/{name}", array)
        write_json(self.folder / "shards" / "parameters.json", self._parameters_record())
        # From the store, so that this process computes with what every other one reads.
        assert self.calibrated()

    def pending(self) -> list[Shard]:
        """Shards without a sound record; what is damaged and in nobody's hands is put aside."""
        found = []
        for shard in self.shards:
            if self._problem(*shard):
                found.append(shard)
                if held := claim(self.lock(*shard)):
                    self.is_complete(*shard)
                    held.release()
        return found

    def check_room(self, pending: Iterable[Shard]) -> None:
        """Raise `UserError` if the disk has less room than shards need before compression."""
        rows = sum(self.axes[split]["token"].used(self.packings[split].members(shard)) for split, shard in pending)
        per_row = sum(spec.bits_per_token for spec in self.contents.arrays.values() if spec.axis == "token") / 8
        needed, free = int(rows * per_row), shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"the store needs up to {needed / 1e9:.1f} GB in {self.folder}, {free / 1e9:.1f} GB are free; make "
                "room, point cache_dir to another disk, or choose a smaller kv.codec; finished shards are kept"
            )

    def is_complete(self, split: str, shard: int) -> bool:
        """Whether a shard is finished; a damaged one is put aside.

        Asked by who holds its lock, or a writer would lose files under its hands.
        """
        problem, path = self._problem(split, shard), shard_record(self.folder, split, shard)
        if problem and path.is_file():
            files = [path, *self._files(split, shard)]
            Quarantine(self.folder).files(f"shard {shard_name(split, shard)}", files, problem)
        return problem is None

    def lock(self, split: str, shard: int) -> Path:
        """Lock of who writes a shard."""
        return self.folder / "locks" / f"{shard_name(split, shard)}.lock"

    def write_shard(self, split: str, shard: int, content: ShardContent) -> None:
        """Write one shard: its arrays, then the record that says it is there.

        Parameters
        ----------
        content
            The shard's rows from its start to the end of its last example, on the CPU.
        """
        axes, arrays = self.axes[split], self.contents.arrays
        used = axes["token"].used(self.packings[split].members(shard))
        assert len(content.kv.keys) == used, f"shard {split}-{shard} has {used} rows, got {len(content.kv.keys)}"
        for file in (shard_record(self.folder, split, shard), *self._files(split, shard)):
            remove_partial(file.parent, file.name)  # of a killed run, whose lock is ours now
        write_arrays(self.root[split], shard, arrays, axes, content.encoded(self.codec, self.device))
        for tensor, of_channels in content.moments().items() if split == STATISTICS else ():
            self.root[split][tensor]["moments"][shard] = of_channels
        write_json(shard_record(self.folder, split, shard), self._record(split, shard))

    def seal(self) -> dict[str, Any]:
        """Write the channel statistics and, last, the manifest; returns the manifest."""
        with self.exclusive():
            self._write_statistics()
            paths = {shard_name(*shard): shard_record(self.folder, *shard) for shard in self.shards}
            if self._parameters_sha256:
                paths["parameters"] = self.folder / "shards" / "parameters.json"
            records = {name: read_json(path) for name, path in paths.items()}
            store, facts = self.folder / "store.zarr", self._facts()
            files = [store / name for record in records.values() for name in record["files"]]
            structure = [store / name for name in sorted(self._structure)]
            Quarantine(self.folder).strays({*files, *structure, *paths.values()})
            raw = facts["tokens"] * 2 * self.geometry.channels * 2
            size = sum(file.stat().st_size for file in (*files, *structure, *paths.values()))
            manifest = facts | {
                "stage": "extract",
                "name": self.folder.name.rsplit("-", 1)[0],
                "codec": {**self.codec.settings.model_dump(), "bits_per_value": self.codec.bits_per_value},
                "bytes": size,
                "raw_bf16_bytes": raw,
                "ratio": size / raw,
                "libraries": library_versions(("kava", "numcodecs", "torch", "transformers", "zarr")),
                "shards": records,
                "files": checksums(store, structure),
            }
            manifest["sha256"] = sha256_json(manifest)
            write_json(self.folder / "manifest.json", manifest)
            for path in (self.folder / "locks").glob("*-*.lock"):
                path.unlink(missing_ok=True)  # whoever claims a shard now finds it finished
            return manifest

    def _begin(self) -> None:
        self._settle(self._empty())
        self.root = open_group(self.folder / "store.zarr", "r+")

    def _create_arrays(self) -> None:
        structure = self._empty()
        for split, packing in self.packings.items():
            group = structure.root.create_group(split)
            create_split(group, packing, self.axes[split], self.contents.arrays, self.geometry)
        self._settle(structure)

    def _empty(self) -> Structure:
        begun = self._facts() | {"shards": {split: packing.shards for split, packing in self.packings.items()}}
        return Structure({"kava": json.loads(canonical_json(begun))})

    def _settle(self, structure: Structure) -> None:
        self._structure |= structure.settle(self.folder / "store.zarr", Quarantine(self.folder))

    def _facts(self) -> dict[str, Any]:
        """What is known of the store before its first shard."""
        return {
            "key": self.key_name,
            "spec": self.contents.settings.model_dump(),
            "geometry": self.geometry.to_dict(),
            "hidden_width": self.contents.hidden_width,
            "examples": {split: len(packing.shard) for split, packing in self.packings.items()},
            "tokens": sum(int(packing.tokens.length.sum()) for packing in self.packings.values()),
        }

    def _load_parameters(self, quarantine: Quarantine) -> bool:
        record = self.folder / "shards" / "parameters.json"
        if not holds_json(record, self._parameters_record()):
            if any(record.parent.glob("*.json")):
                quarantine.everything("its codec's parameters are lost or damaged, and no shard is read without them")
                self._begin()
            return False
        self.codec.load_parameters(read_parameters(self.root), self.device)
        self._parameters_sha256 = sha256_file(record)
        return True

    def _parameters_record(self) -> dict[str, Any]:
        store = self.folder / "store.zarr"
        files = sorted(path for path in (store / "parameters").rglob("*") if path.is_file())
        return {"store": self.key_name, "files": checksums(store, files)}

    def _write_statistics(self) -> None:
        """Mean and standard deviation per channel over the training tokens."""
        tokens = int(self.packings[STATISTICS].tokens.length.sum())
        structure = self._empty()
        group = structure.root.create_group(STATISTICS)
        for tensor in TENSORS:
            for name, data in channel_statistics(self.root[STATISTICS][tensor]["moments"][:], tokens).items():
                write_whole(group, f"{tensor}/{name}", data, ["layer", "kv_head", "head_dim"])
        self._settle(structure)

    def _problem(self, split: str, shard: int) -> str | None:
        path = shard_record(self.folder, split, shard)
        if not path.is_file():
            return "it has no record"
        try:
            sound = holds_json(path, self._record(split, shard))
        except FileNotFoundError as error:
            return f"{Path(error.filename).relative_to(self.folder)} is missing"
        return None if sound else "its record is not that of these files in this store: damaged, or foreign"

    def _record(self, split: str, shard: int) -> dict[str, Any]:
        """What the record of a shard with these files has to say."""
        return {
            "store": self.key_name,
            "parameters": self._parameters_sha256,
            "rows": self.axes[split]["token"].used(self.packings[split].members(shard)),
            "files": checksums(self.folder / "store.zarr", self._files(split, shard)),
        }

    def _files(self, split: str, shard: int) -> list[Path]:
        return [self.folder / "store.zarr" / name for name in shard_files(split, shard, self.contents.arrays)]

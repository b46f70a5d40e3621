"""Is what lies in a store's folder what its manifest says?"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kava.errors import UserError
from kava.files import read_json, sha256_file, sha256_json

MEND = "delete the store's manifest.json and run extract: it puts the damage aside, writes it anew and keeps the rest"


class Integrity:
    """Checks of a sealed store.

    Parameters
    ----------
    folder
        Folder of the store.
    manifest
        Its manifest.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self._checked: set[str] = set()

    def check_files(self) -> None:
        """Raise `UserError` at the first shard that is foreign, missing, or not of its size. Reads no data."""
        for problem in self.identity_problems():
            raise UserError(problem)
        for shard in self.manifest["shards"]:
            for problem in self._size_problems(shard):
                raise UserError(f"{problem}; {MEND}")

    def check_shard(self, shard: str) -> None:
        """Raise `UserError` if the bytes of a shard are not those of the manifest; a shard is read once."""
        if shard not in self._checked:
            for problem in self.shard_problems(shard):
                raise UserError(f"{problem}; {MEND}")
            self._checked.add(shard)

    def identity_problems(self) -> Iterator[str]:
        """What speaks against this being the store that its folder names."""
        key = sha256_json(self.manifest["spec"])[:16]
        named = re.search(r"-([0-9a-f]{16})$", self.folder.resolve().name)
        group = self.folder / "store.zarr" / "zarr.json"
        begun = read_json(group).get("attributes", {}).get("kava", {}).get("key")
        keys = {"manifest.json": self.manifest["key"], "folder": named[1] if named else key, "store.zarr": begun}
        for what, found in keys.items():
            if found != key:
                yield (
                    f"{self.folder.name}: the {what} is of store {found}, the specification of {key}: another teacher, "
                    "data set or codec; move the folder away and run extract"
                )
        for shard, record in self.manifest["shards"].items():
            if record["store"] != key:
                yield f"shard {shard} was written for store {record['store']}, not {key}; {MEND}"

    def shard_problems(self, shard: str) -> Iterator[str]:
        """What is wrong with the files of a shard, all bytes of which are read."""
        sizes = list(self._size_problems(shard))
        yield from sizes
        if not sizes:
            for name, facts in self.manifest["shards"][shard]["files"].items():
                if sha256_file(self.folder / "store.zarr" / name) != facts["sha256"]:
                    yield f"shard {shard}: {name} is damaged: its checksum is not that of the manifest"

    def _size_problems(self, shard: str) -> Iterator[str]:
        for name, facts in self.manifest["shards"][shard]["files"].items():
            path = self.folder / "store.zarr" / name
            if not path.is_file():
                yield f"shard {shard}: {name} is missing"
            elif (size := path.stat().st_size) != facts["bytes"]:
                yield f"shard {shard}: {name} has {size} bytes of {facts['bytes']}: truncated, or half written"

"""Is what lies in a store's folder what its manifest says?"""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from kava.errors import UserError
from kava.files import json_text, read_json, sha256_json
from kava.store.files import StoreFiles

REPAIR: Final = (
    "delete the store's manifest.json and run extract: it puts the damage aside, writes it anew and keeps the rest"
)
CHANGED: Final = "is damaged or foreign: its checksum is not that of its record"


class Problem(NamedTuple):
    """What is wrong with a store: where (`shard train-00003`, say), with which file under `store.zarr`, and what."""

    where: str
    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.file} {self.what}".replace("  ", " ")


def read_manifest(path: Path) -> dict[str, Any]:
    """Manifest of a KV store; `UserError` if it is unreadable, of something else, or not as it was written."""
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("stage") != "extract" or "sha256" not in manifest:
        raise UserError(f"{path} is no manifest of a KV store of this version; run extract, which writes one")
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    if manifest["sha256"] != sha256_json(content) or path.read_text(encoding="utf-8") != json_text(manifest):
        raise UserError(f"{path} is damaged: its checksum is not that of its content; {REPAIR}")
    return manifest


def is_intact(folder: Path) -> bool:
    """Whether a store is sealed and every byte of it is as its manifest says."""
    try:
        manifest = read_manifest(folder / "manifest.json")
    except UserError:
        return False
    integrity = Integrity(StoreFiles(folder), manifest)
    of_shards = (integrity.shard_problems(shard) for shard in manifest["shards"])
    return not any(chain(integrity.identity_problems(), integrity.structure_problems(), *of_shards))


class Integrity:
    """Checks of a store.

    Parameters
    ----------
    files
        Of the store.
    manifest
        Its manifest.
    """

    def __init__(self, files: StoreFiles, manifest: dict[str, Any]) -> None:
        self.files, self.manifest = files, manifest
        self._checked: set[tuple[str, str | None]] = set()

    def check_files(self) -> None:
        """Raise `UserError` at the first shard that is foreign, missing, or not of its size. Reads no KV."""
        for problem in self.identity_problems():
            raise UserError(str(problem))
        for problem in self.structure_problems():
            raise UserError(f"{problem}; {REPAIR}")
        for shard in self.manifest["shards"]:
            for problem in self._size_problems(f"shard {shard}", self.manifest["shards"][shard]["files"]):
                raise UserError(f"{problem}; {REPAIR}")

    def check_shard(self, shard: str, file: str | None = None) -> None:
        """Raise `UserError` if the bytes of a shard, or of one file of it, are not those of the manifest.

        What was found sound is not read again.
        """
        if (shard, file) not in self._checked:
            files = self.manifest["shards"][shard]["files"]
            for problem in self._problems(f"shard {shard}", {file: files[file]} if file else files):
                raise UserError(f"{problem}; {REPAIR}")
            self._checked.add((shard, file))

    def identity_problems(self) -> Iterator[Problem]:
        """What speaks against this being the store that its folder names."""
        key = sha256_json(self.manifest["spec"])[:16]
        named = re.search(r"-([0-9a-f]{16})$", self.files.name)
        keys = {"manifest": self.manifest["key"], "folder": named[1] if named else key}
        try:
            attributes = self.files.json("zarr.json").get("attributes")
            begun = attributes.get("kava") if isinstance(attributes, dict) else None
            keys["group store.zarr"] = begun.get("key") if isinstance(begun, dict) else None
        except UserError as error:
            yield Problem("store.zarr", "", str(error))
        for what, found in keys.items():
            if found != key:
                yield Problem(
                    self.files.name, "",
                    f"the {what} is of store {found}, the specification of {key}: another teacher, data set or codec; "
                    "move the folder away and run extract",
                )  # fmt: skip
        for shard, record in self.manifest["shards"].items():
            if record["store"] != key:
                yield Problem(f"shard {shard}", "", f"was written for store {record['store']}, not {key}: foreign")

    def structure_problems(self) -> Iterator[Problem]:
        """What is wrong with metadata, indexes and statistics."""
        return self._problems("structure", self.manifest["files"])

    def shard_problems(self, shard: str) -> Iterator[Problem]:
        """What is wrong with the files of a shard, all bytes of which are read."""
        return self._problems(f"shard {shard}", self.manifest["shards"][shard]["files"])

    def _problems(self, where: str, files: dict[str, dict[str, Any]]) -> Iterator[Problem]:
        wrong = list(self._size_problems(where, files))
        yield from wrong
        named = {problem.file for problem in wrong}
        for name, facts in files.items():
            if name not in named and self.files.sha256(name) != facts["sha256"]:
                yield Problem(where, name, CHANGED)

    def _size_problems(self, where: str, files: dict[str, dict[str, Any]]) -> Iterator[Problem]:
        for name, facts in files.items():
            size = self.files.size(name)
            if size is None:
                yield Problem(where, name, "is missing")
            elif size != facts["bytes"]:
                what = "truncated, or half written" if size < facts["bytes"] else "foreign"
                yield Problem(where, name, f"has {size} bytes of {facts['bytes']}: {what}")

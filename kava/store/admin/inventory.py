"""What lies in a cache folder: stores, token sets, written answers, references. Reads no array, imports no torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kava.errors import UserError
from kava.files import paths_below, read_json
from kava.locks import live_holder
from kava.store.admin.describe import finished_shards, read_begun

KINDS: Final = ("teacher_kv", "tokens", "answers", "references")
# Name of a folder whose content is what its key says, for as long as it exists.
KEYED: Final = re.compile(r".+-[0-9a-f]{16}")
# In a cache that another checkout uses too.
SHARED_MARK: Final = ".shared"


@dataclass(frozen=True)
class Entry:
    """A folder that is named by its key.

    Attributes
    ----------
    kind
        One of `KINDS`.
    folder
        Where it lies.
    sealed
        Whether its manifest is there.
    bytes
        On disk, with what is in its quarantine.
    modified
        When it was last written to, seconds since the epoch.
    codec, tokens, ratio, shards
        Where they apply and are known: kind of codec, number of tokens, size over raw bf16, shards (finished, all).
    """

    kind: str
    folder: Path
    sealed: bool
    bytes: int
    modified: float
    codec: str | None = None
    tokens: int | None = None
    ratio: float | None = None
    shards: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def key(self) -> str:
        return self.name.rsplit("-", 1)[1]

    @property
    def state(self) -> str:
        if self.sealed or not self.shards:
            return "sealed" if self.sealed else "unfinished"
        return f"{self.shards[0]} of {self.shards[1]} shards"

    @property
    def busy(self) -> str | None:
        """The live process that works in the folder, if one does."""
        locks = [self.folder / ".lock", *sorted((self.folder / "locks").glob("*.lock"))]
        return next((who for path in locks if (who := live_holder(path))), None)


def entries(cache: Path) -> list[Entry]:
    """Everything in a cache folder that has a key in its name."""
    return [
        _entry(kind, folder)
        for kind in KINDS
        for folder in paths_below(cache / kind, "*")
        if folder.is_dir() and KEYED.fullmatch(folder.name)
    ]


def total_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _entry(kind: str, folder: Path) -> Entry:
    written = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl")]
    modified = max(path.stat().st_mtime for path in (folder, *written))
    manifest = _readable(folder / "manifest.json")
    facts = _of_store(folder, manifest) if kind == "teacher_kv" else {}
    if kind == "tokens":
        counts = [split["tokens"] for split in manifest.get("splits", {}).values() if "tokens" in split]
        facts = {"tokens": sum(counts)} if counts else {}
    return Entry(kind, folder, bool(manifest), total_bytes(folder), modified, **facts)


def _of_store(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    try:
        known = read_begun(folder)
        shards = finished_shards(folder), sum(known["shards"].values())
    except UserError:
        known, shards = manifest, None
    codec = known["spec"]["codec"]["kind"] if "spec" in known else None
    return {"codec": codec, "tokens": known.get("tokens"), "ratio": manifest.get("ratio"), "shards": shards}


def _readable(manifest: Path) -> dict[str, Any]:
    """A listing shows a damaged manifest as none; `kava store verify` says what is wrong with it."""
    try:
        return read_json(manifest)
    except UserError:
        return {}

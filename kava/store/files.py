"""The files of a store as its readers see them: all that is read goes through here, wherever a store may lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.files import read_json, sha256_file
from kava.store.layout import open_group

GROUP = "store.zarr"


@dataclass(frozen=True)
class StoreFiles:
    """Files of a store in a local folder; their names are paths below its Zarr group."""

    folder: Path

    @property
    def name(self) -> str:
        """Name of the store, which ends in its key."""
        return self.folder.resolve().name

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object; `UserError` if it is missing or none."""
        return read_json(self.folder / GROUP / name)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        path = self.folder / GROUP / name
        return path.stat().st_size if path.is_file() else None

    def sha256(self, name: str) -> str:
        """Hash of a file's bytes, all of which are read."""
        return sha256_file(self.folder / GROUP / name)

    def group(self) -> Any:
        """The Zarr group, for reading."""
        return open_group(self.folder / GROUP, "r")

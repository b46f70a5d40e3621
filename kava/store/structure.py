"""The small files of a store: groups, array metadata, indexes and statistics.

They are made in memory first, so that those on disk can be compared with what they have to be: Zarr keeps no checksum
of its metadata, and a wrong shape or fill value would misread every chunk.
"""

from pathlib import Path
from typing import Any

import zarr
from zarr.storage import MemoryStore

from kava.files import write_atomic
from kava.store.quarantine import Quarantine


class Structure:
    """Groups and arrays in memory, to be brought to disk.

    Parameters
    ----------
    attributes
        Of the root group.

    Attributes
    ----------
    root
        The root group.
    """

    def __init__(self, attributes: dict[str, Any]) -> None:
        self._files: dict[str, Any] = {}
        self.root = zarr.open_group(MemoryStore(self._files), mode="w", zarr_format=3, attributes=attributes)

    def settle(self, store: Path, quarantine: Quarantine) -> set[str]:
        """Write what is not there yet, put aside what is there and differs; returns the names of all files."""
        for name, buffer in self._files.items():
            path, data = store / name, buffer.to_bytes()
            if not path.is_file() or path.read_bytes() != data:
                if path.exists():
                    quarantine.files(name, [path], "it is damaged, or was written by another version of Zarr")
                write_atomic(path, data)
        return set(self._files)

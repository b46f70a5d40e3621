"""Put aside what does not belong to a store; nothing is deleted, and nothing of it is read again."""

import logging
from contextlib import suppress
from pathlib import Path

from kava.errors import UserError
from kava.files import read_json, remove_partial
from kava.store.integrity import read_manifest

log = logging.getLogger("kava")


class Quarantine:
    """The folder `quarantine/` of a store; every move gets a number of its own and keeps its paths.

    Parameters
    ----------
    folder
        Folder of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def foreign_store(self, key: str) -> None:
        """Move the whole store if it was begun under another key, or by something else."""
        group = self.folder / "store.zarr" / "zarr.json"
        if not group.is_file():
            return
        try:
            found = read_json(group).get("attributes", {}).get("kava", {}).get("key")
        except UserError:
            return  # damaged: it is put aside alone, and the shards are judged by their records
        if found != key:
            self.everything(f"it was begun for store {found}")

    def damaged_manifest(self) -> None:
        """Move a manifest that is not as it was written."""
        manifest = self.folder / "manifest.json"
        if manifest.is_file():
            try:
                read_manifest(manifest)
            except UserError:
                self._move("the manifest", [manifest], "it is damaged, or of another version")

    def everything(self, reason: str) -> None:
        """Move arrays, records and manifest."""
        self._move("the store", [self.folder / name for name in ("store.zarr", "shards", "manifest.json")], reason)

    def files(self, what: str, files: list[Path], reason: str) -> None:
        """Move some files, and the manifest that vouches for them."""
        self._move(what, [*files, self.folder / "manifest.json"], reason)

    def strays(self, known: set[Path]) -> None:
        """Move what nobody vouches for, and delete the litter of killed runs."""
        unknown: list[Path] = []
        remove_partial(self.folder, "*.json")
        for part in ("store.zarr", "shards"):
            for path in (self.folder / part).rglob("*"):
                if path.suffix == ".partial":
                    path.unlink()
                elif path.is_file() and path not in known:
                    unknown.append(path)
        if unknown:
            reason = f"{unknown[0].relative_to(self.folder)} belongs to no shard of this store"
            self.files("what does not belong", unknown, reason)

    def _move(self, what: str, paths: list[Path], reason: str) -> None:
        parent = self._next()
        for path in filter(Path.exists, paths):
            target = parent / path.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # moved by another process a moment ago
                path.rename(target)
        log.warning("warning: %s is put aside in %s, since %s", what, parent, reason)

    def _next(self) -> Path:
        parent = self.folder / "quarantine"
        parent.mkdir(exist_ok=True)
        while True:
            number = 1 + max((int(path.name) for path in parent.glob("[0-9]*")), default=0)
            with suppress(FileExistsError):
                (parent / str(number)).mkdir()
                return parent / str(number)

"""What a store is and how large, whether it is finished or not. Reads no array and imports no torch."""

from pathlib import Path
from typing import Any

from kava.errors import UserError
from kava.files import read_json

# What the manifest of another stage vouches for.
OTHERS = {
    "write": "the teacher's answers",
    "tokenize": "a token set",
    "evaluate": "an evaluation",
    "pretrain": "a projector",
    "distill": "a student",
}


def store_folder(path: Path) -> Path:
    """Folder of a store, given that or its `manifest.json`.

    Raises
    ------
    UserError
        No store is there, or something else.
    """
    folder = path.parent if path.name == "manifest.json" else path
    if not (folder / "store.zarr").is_dir() and (other := _other(folder / "manifest.json")):
        raise UserError(f"{folder} is {other} and no KV store; `kava store ls` shows which folders are stores")
    if not (folder / "store.zarr").is_dir() and not (folder / "manifest.json").is_file():
        raise UserError(
            f"{folder} is no KV store: it has neither manifest.json nor store.zarr; `kava store ls` shows all"
        )
    return folder


def _other(manifest: Path) -> str | None:
    """What a manifest of another stage is of; None of a store's, and of one that is not there or damaged."""
    try:
        stage = read_json(manifest).get("stage")
    except (UserError, AttributeError):
        return None
    return OTHERS.get(str(stage))


def describe(folder: Path) -> dict[str, Any]:
    """Facts of a store as JSON values.

    An unfinished store has none of `codec.bits_per_value` and `libraries`, and its size is what is there so far.
    """
    begun = read_begun(folder)
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    known = begun | manifest
    if not isinstance(known["spec"], dict):
        raise UserError(f"{folder / 'manifest.json'} is damaged; `kava store verify {folder}` says how to mend it")
    spec, geometry = known["spec"], known["geometry"]
    sizes = array_sizes(folder)
    size = sum(sizes.values())
    raw = known["tokens"] * 4 * geometry["layers"] * geometry["kv_heads"] * geometry["head_dim"]
    return {
        "name": manifest.get("name") or folder.name.rsplit("-", 1)[0],
        "key": known["key"],
        "sealed": bool(manifest),
        "shards": {"count": sum(begun["shards"].values()), "finished": finished_shards(folder)},
        "teacher": spec.get("teacher"),
        "data": spec.get("tokens"),
        "keys": spec["keys"],
        "codec": manifest.get("codec") or spec["codec"],
        "selection": spec["select"],
        "signals": spec["signals"],
        "geometry": geometry,
        "examples": known["examples"],
        "tokens": known["tokens"],
        "bytes": size,
        "raw_bf16_bytes": raw,
        "ratio": size / raw,
        "arrays": sizes,
        "libraries": manifest.get("libraries"),
        "quarantined": quarantined(folder),
    }


def read_begun(folder: Path) -> dict[str, Any]:
    """What the root group says of its store: key, specification, number of shards."""
    attributes = read_json(folder / "store.zarr" / "zarr.json").get("attributes")
    begun = attributes.get("kava") if isinstance(attributes, dict) else None
    if not isinstance(begun, dict) or not isinstance(begun.get("spec"), dict):
        raise UserError(f"{folder} is a store of an older version; run extract, which makes a new one")
    return begun


def finished_shards(folder: Path) -> int:
    """Shards with a record."""
    return sum(path.stem != "parameters" for path in (folder / "shards").glob("*.json"))


def array_sizes(folder: Path) -> dict[str, int]:
    """Bytes on disk by array, all splits together; metadata and records under their own names."""
    sizes: dict[str, int] = {}
    root = folder / "store.zarr"
    for path in root.rglob("*"):
        if path.is_file():
            array = path.relative_to(root).as_posix().partition("/c/")[0]
            name = "metadata" if path.name == "zarr.json" else array.partition("/")[2] or array
            name = "parameters" if array.startswith("parameters/") else name
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    sizes["records"] = sum(path.stat().st_size for path in (folder / "shards").glob("*.json"))
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def quarantined(folder: Path) -> list[dict[str, Any]]:
    """What was put aside: number of each move, its files and their bytes."""
    found = []
    for parent in sorted((folder / "quarantine").glob("[0-9]*"), key=lambda path: int(path.name)):
        files = [path for path in parent.rglob("*") if path.is_file()]
        names = sorted(path.relative_to(parent).as_posix() for path in files)
        found.append({"number": int(parent.name), "files": names, "bytes": sum(path.stat().st_size for path in files)})
    return found

"""Files that are either old or new, never torn: atomic writes, hashes, canonical JSON."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kava.errors import UserError


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values are equal strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    return sha256_bytes(canonical_json(value).encode())


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(root: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Path below a folder → size and SHA-256 of each file."""
    return {
        file.relative_to(root).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in files
    }


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a crash or power loss leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a manifest: indented, sorted, atomic; equal values give equal bytes."""
    write_atomic(path, json_text(value))


def json_text(value: Mapping[str, Any]) -> str:
    """What `write_json` writes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def holds_json(path: Path, value: Mapping[str, Any]) -> bool:
    """Whether a file is, byte for byte, what `write_json` would write."""
    return path.is_file() and path.read_bytes() == json_text(value).encode()


def read_json(path: Path) -> dict[str, Any]:
    """Read a manifest; ``UserError`` if it is missing or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that makes it, or `snakemake {path}`") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and rerun the stage that makes it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; delete it and rerun the stage that makes it")
    return value


def paths_below(folder: Path, pattern: str) -> list[Path]:
    """As `Path.glob`, sorted; but a folder that cannot be read raises `PermissionError`, and is not an empty one."""
    paths = [folder]
    for part in pattern.split("/"):
        inside = (path for above in paths if above.is_dir() for path in above.iterdir())
        paths = [path for path in inside if fnmatchcase(path.name, part)]
    return sorted(paths)


def nearest_folder(folder: Path) -> Path:
    """The nearest folder that is there already, for a folder that is to be made."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def remove_partial(folder: Path, pattern: str) -> None:
    """Delete the litter of interrupted writes of some files (``<pattern>.*.partial``), ours and Zarr's."""
    for path in folder.glob(f"{pattern}.*.partial"):
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Every byte of a store against its records, every chunk decoded; all problems are named, not the first alone."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import zarr

from kava.errors import UserError
from kava.files import holds_json, read_json
from kava.store.files import StoreFiles
from kava.store.integrity import CHANGED, Integrity, Problem, read_manifest
from kava.store.layout import shard_name

STRUCTURE: Final = re.compile(r".*zarr\.json|[^/]+/(index/.+|(keys|values)/(mean|std)/.+)")
SHARD_FILE: Final = re.compile(r"([^/]+)/.+/c/(\d+)(/\d+)*")


class Part(NamedTuple):
    """Rows of an array that lie in one file: its path under `store.zarr`, the rows, and the chunks inside."""

    file: str
    rows: slice
    chunks: int


@dataclass
class Verification:
    """What was read of a store, and what is wrong with it."""

    shards: int = 0
    chunks: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        problems = [problem._asdict() for problem in self.problems]
        return {"shards": self.shards, "chunks": self.chunks, "bytes": self.bytes, "problems": problems}


def verify(folder: Path) -> Verification:
    """Check a store, sealed or not, from end to end.

    Parameters
    ----------
    folder
        Folder of the store.

    Returns
    -------
    Verification
        With no problems if all is good.
    """
    found = Verification()
    sealed = _manifest(folder, found)
    records = _records(folder, sealed, found)
    known = sealed or _begun(folder, found)
    if known is None:
        return found
    integrity = Integrity(StoreFiles(folder), {"files": {}} | known | {"shards": records})
    found.problems += integrity.identity_problems()
    found.problems += integrity.structure_problems() if sealed else ()
    for shard in records:
        found.problems += integrity.shard_problems(shard)
    vouched = {name for files in (known.get("files", {}), *(r["files"] for r in records.values())) for name in files}
    found.problems += _unvouched(folder, vouched, sealed is not None)
    found.shards = len(records.keys() - {"parameters"})
    _decode(folder, found)
    return found


def _manifest(folder: Path, found: Verification) -> dict[str, Any] | None:
    try:
        return read_manifest(folder / "manifest.json")
    except UserError as error:
        found.problems.append(Problem("manifest.json", "", str(error)))
        return None


def _begun(folder: Path, found: Verification) -> dict[str, Any] | None:
    """What an unsealed store says of itself."""
    try:
        begun: dict[str, Any] = read_json(folder / "store.zarr" / "zarr.json")["attributes"]["kava"]
        wanted = {shard_name(split, shard) for split, shards in begun["shards"].items() for shard in range(shards)}
    except (UserError, KeyError, TypeError, AttributeError) as error:
        found.problems.append(Problem("store.zarr", "", f"does not say what store it is ({error})"))
        return None
    finished = [name for name in wanted if (folder / "shards" / f"{name}.json").is_file()]
    if len(finished) < len(wanted):
        what = f"is unfinished: {len(finished)} of {len(wanted)} shards are there; run extract"
        found.problems.append(Problem("store", "", what))
    return begun


def _records(folder: Path, sealed: dict[str, Any] | None, found: Verification) -> dict[str, Any]:
    """Record of each shard: the manifest's, or the file's where there is none."""
    records: dict[str, Any] = dict(sealed["shards"]) if sealed else {}
    for name, record in records.items():
        path = folder / "shards" / f"{name}.json"
        if not path.is_file():
            found.problems.append(Problem(f"shard {name}", "", "has lost its record: half written, or deleted"))
        elif not holds_json(path, record):
            found.problems.append(Problem(f"shard {name}", "", f"its record {_contradicts(path, record)}"))
    for path in sorted((folder / "shards").glob("*.json")):
        if path.stem in records:
            continue
        if sealed:
            found.problems.append(Problem(f"shard {path.stem}", "", "has a record and is no shard of the manifest"))
            continue
        try:
            record = read_json(path)
            assert {"store", "files"} <= record.keys()
            records[path.stem] = record
        except (UserError, AssertionError, AttributeError):
            found.problems.append(Problem(f"shard {path.stem}", "", "its record is damaged"))
    return records


def _contradicts(path: Path, record: dict[str, Any]) -> str:
    try:
        found = read_json(path).get("store")
    except UserError:
        return "is damaged: it is not valid JSON"
    return "is damaged: it is not the manifest's" if found == record["store"] else f"is of store {found}: foreign"


def _unvouched(folder: Path, vouched: set[str], sealed: bool) -> Iterator[Problem]:
    """Files that no record and no manifest speaks of."""
    root = folder / "store.zarr"
    half: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or name in vouched or path.suffix == ".partial":
            continue
        where = _where(name)
        if where != "structure":
            half.setdefault(where, name)
        elif sealed:
            yield Problem(where, name, "belongs to no shard of this store")
    for where, name in half.items():
        yield Problem(where, name, "and what lies beside it have no record: half written, or foreign")


def _decode(folder: Path, found: Verification) -> None:
    """Read every array through Zarr, and tell flipped bits from whole chunks that are another's."""
    root = folder / "store.zarr"
    missing = {problem.file for problem in found.problems if problem.what != CHANGED}
    verdicts: dict[str, str] = {}
    for metadata in sorted(root.rglob("zarr.json")):
        name = metadata.parent.relative_to(root).as_posix()
        try:
            if read_json(metadata)["node_type"] != "array":
                continue
            array = zarr.open_array(metadata.parent, mode="r", zarr_format=3)
            parts = list(_parts(array, name))
        except PermissionError:
            raise
        except Exception as error:
            # Whatever a library makes of damaged metadata is one problem of many.
            verdicts[f"{name}/zarr.json"] = f"is damaged: Zarr cannot open the array ({error})"
            continue
        for part in parts:
            path = root / part.file
            if part.file in missing or not path.is_file():
                continue
            try:
                array[part.rows]
            except PermissionError:  # it says nothing about the store
                raise
            except Exception as error:
                verdicts[part.file] = f"is damaged: it cannot be decoded ({error})"
            else:
                found.chunks += part.chunks
                found.bytes += path.stat().st_size
                verdicts[part.file] = ""
    found.problems = [_judged(problem, verdicts) for problem in found.problems]
    named = {problem.file for problem in found.problems}
    for name, verdict in verdicts.items():
        if verdict and name not in named:
            found.problems.append(Problem(_where(name), name, verdict))


def _judged(problem: Problem, verdicts: dict[str, str]) -> Problem:
    if problem.what != CHANGED or problem.file not in verdicts:
        return problem
    whole = "is foreign: it decodes, and is not what the record tells of"
    return problem._replace(what=verdicts[problem.file] or whole)


def _where(name: str) -> str:
    """Shard that a file under `store.zarr` belongs to, or `structure`."""
    if name.startswith("parameters/"):
        return "shard parameters"
    match = None if STRUCTURE.fullmatch(name) else SHARD_FILE.fullmatch(name)
    return f"shard {shard_name(match[1], int(match[2]))}" if match else "structure"


def _parts(array: Any, name: str) -> Iterator[Part]:
    """Files of an array, which is cut along its first axis alone."""
    if 0 in array.shape:
        return
    height, chunk = (array.shards or array.chunks)[0], array.chunks[0]
    for number, first in enumerate(range(0, array.shape[0], height)):
        last = min(first + height, array.shape[0])
        file = "/".join([name, "c", str(number), *["0"] * (array.ndim - 1)])
        yield Part(file, slice(first, last), -(-(last - first) // chunk))

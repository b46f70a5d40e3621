"""The experiment record, results/<experiment>/record.yaml: what an experiment was, and what its report found.

It names every file that its report read, so that `kava report` finds them again when the folder was renamed or the
checkout moved: those of runs relative to its own folder, those that experiments may share relative to the cache. Each
has its SHA-256, since the numbers of a run that was made again are not those of the configuration that stands here.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kava.config.base import CACHE_VARIABLE, cache_from_environment
from kava.errors import UserError
from kava.files import sha256_file
from kava.report.record_schema import Place, Record

FILE = "record.yaml"
FORMAT = 1
AGAIN = (
    "the `snakemake` command of its run and `--forcerun report` (with all of its --config: other settings would train "
    "its arms anew; `-n` tells before)"
)
# Settings that may be a path.
PLACES = (("teacher", "model"), ("student", "model"), ("data", "path"))


@dataclass(frozen=True)
class Experiment:
    """A finished experiment, as its record tells.

    Attributes
    ----------
    folder
        As given.
    record
        What the file holds.
    inputs
        What its report read, by name, relative to the working folder.
    """

    folder: Path
    record: dict[str, Any]
    inputs: dict[str, Path]


def read_record(folder: Path) -> Experiment:
    """Read the record of an experiment's folder, and find its files.

    Raises
    ------
    UserError
        As `record_as_written`, or a file that it names is gone or was made again.
    """
    record, checked = record_as_written(folder)
    return Experiment(folder, record, {name: _find(folder / FILE, place) for name, place in checked.files.items()})


def record_as_written(folder: Path) -> tuple[dict[str, Any], Record]:
    """The record of an experiment's folder as it stands, and what of it was checked; its files are not looked at.

    Raises
    ------
    UserError
        There is no record, or it is damaged or of another format.
    """
    path = folder / FILE
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} has no {FILE}; give the folder of a finished experiment, results/<experiment>, whose report "
            f"writes it ({AGAIN})"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid YAML ({error}); make the experiment's report again with {AGAIN}"
        ) from None
    given = record.get("format") if isinstance(record, dict) else None
    if given != FORMAT:
        raise UserError(
            f"{path} has format {given!r}, and this version reads {FORMAT}; make its report again with {AGAIN}"
        )
    try:
        return record, Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(f"{path}: {where}{first['msg']}; make the experiment's report again with {AGAIN}") from None


def _find(record: Path, place: Place) -> Path:
    """The file that a record names, relative to the working folder."""
    own = os.path.abspath(record.parent)
    if place.cache is not None:
        # Content keys name what is there, so either cache may have it.
        shared = cache_from_environment()
        roots = [shared] if shared else []
        roots.append(os.path.dirname(own))
        remedy = f"set {CACHE_VARIABLE} to the cache_dir of the run, or run the experiment again: what is there is kept"
    else:
        roots = [own]
        remedy = "restore it, or run the experiment again: what is there is kept"
    possible = [Path(os.path.relpath(os.path.join(root, place.cache or place.path or ""))) for root in roots]
    existing = [path for path in possible if path.is_file()]
    if not existing:
        raise UserError(f"{record} names {' or '.join(map(str, possible))}, which does not exist; {remedy}")
    same = next((path for path in existing if sha256_file(path) == place.sha256), None)
    if same is None:
        raise UserError(f"{existing[0]} was made after its record, {record}; make its report again with {AGAIN}")
    return same


def without_places(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the last part of each path alone, since a record is shared and a machine is not.

    The same model, given by another path, is no difference between experiments. The id of a hub stays whole.
    """
    shown: dict[str, Any] = json.loads(json.dumps(spec))
    for section, setting in PLACES:
        value = shown.get(section, {}).get(setting)
        if value and (Path(value).is_absolute() or Path(value).is_dir()):
            shown[section][setting] = os.path.basename(os.path.abspath(value))
    return shown

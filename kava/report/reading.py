"""The files that stages leave: JSON objects, JSON lines and costs; whatever is damaged is named with its file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.errors import UserError
from kava.report.clean import jsonable


@dataclass(frozen=True)
class Cost:
    """What a stage took; the peak is in MiB."""

    seconds: float | None = None
    peak_memory_mib: float | None = None


NO_COST = Cost()


def read_json(path: Path, lost: list[str]) -> dict[str, Any]:
    """One JSON object, with None for every number that is not finite; `lost` receives where those were.

    Raises
    ------
    UserError
        If the file does not hold one; the message names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); rerun the stage that writes it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}; rerun the stage that writes it")
    places: list[str] = []
    finite: dict[str, Any] = jsonable(value, lost=places)
    lost += [f"{path.as_posix()}: {place}" for place in places]
    return finite


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, one by one.

    Raises
    ------
    UserError
        If a line is not JSON; the message names it.
    """
    # A model may emit bytes that are no UTF-8; they are data to be shown, not a reason to stop.
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, line {number} is not JSON: {error}; rerun the stage that writes it"
                ) from error


def read_cost(directory: Path, lost: list[str]) -> Cost:
    """What `cost.json` of a stage's folder records; `lost` is as for `read_json`."""
    cost = read_json(directory / "cost.json", lost)
    return Cost(cost.get("seconds"), cost.get("peak_memory_mib"))

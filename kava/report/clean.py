"""What may go into the JSON and into the page: finite numbers, and text that survives UTF-8 and HTML."""

import math
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# HTML parsers drop or replace these; a visible mark shows that the model wrote something there.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def clean_text(text: object) -> str:
    """Model output as text that can be stored as UTF-8 and shown in a page.

    Lone surrogates (a cut multi-byte character, decoded) become `?`, control characters other than tab
    and newline become U+FFFD. Markup is left alone: escaping is the template's work.
    """
    encodable = str(text).encode("utf-8", "replace").decode("utf-8")
    return _UNPRINTABLE.sub("\ufffd", encodable)


class Row:
    """A dataclass that stands in the JSON: by its fields, unless its `to_dict` says otherwise."""

    def to_dict(self) -> dict[str, Any]:
        """As it stands there, but for rows within."""
        return dict(vars(self))


def jsonable(value: Any, path: str = "", lost: list[str] | None = None) -> Any:
    """`value` in plain JSON types, with NaN and infinities replaced by None.

    Parameters
    ----------
    value : Any
        Nested rows, mappings, sequences and scalars; NumPy scalars and paths are converted, anything else that
        JSON does not know becomes its `str`.
    path : str
        Dotted place of `value`, for `lost`.
    lost : list of str, optional
        Receives the place of every number that was not finite.
    """
    if isinstance(value, Row):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): jsonable(v, f"{path}.{k}" if path else str(k), lost) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [jsonable(v, f"{path}[{i}]", lost) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        if lost is not None:
            lost.append(path)
        return None
    if value is None or isinstance(value, bool | int):
        return value
    return clean_text(value.as_posix() if isinstance(value, Path) else value)


def grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """Key → its values, both in the order given."""
    groups: dict[Key, list[Value]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted keys; lists and scalars stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

"""YAML of a user: UTF-8, valid, and no key twice; else one sentence."""

from pathlib import Path
from typing import Any, Final

import yaml

from kava.errors import UserError

_MERGE: Final = "tag:yaml.org,2002:merge"


class InvalidYamlError(UserError):
    """A text that is no YAML."""


class RepeatedKeyError(UserError):
    """A key that stands twice in one mapping."""


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which keeps the last of equal keys without a word, made to refuse them."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here and not where mappings are constructed: merging `<<` has put other mappings' keys into them by then.
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            # `<<` twice loses nothing: both are merged.
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            # As values, since `on` and `true` are one key.
            value = self.construct_object(key)
            line = key.start_mark.line + 1
            if value in lines:
                raise RepeatedKeyError(
                    f"is ambiguous: key {key.value!r} stands twice, in {_lines(lines[value], line)}, and the last "
                    "alone would count; join them, or remove one"
                )
            lines[value] = line
        return node


def parse_yaml(text: str) -> Any:
    """Value of a YAML text.

    Raises
    ------
    InvalidYamlError, RepeatedKeyError
        Each says what is wrong as the rest of a sentence that begins with a place.
    """
    try:
        value = yaml.load(text, StrictLoader)
    except RepeatedKeyError:
        raise
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidYamlError(f"is not valid YAML ({error.problem or error.context}{where})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Characters that YAML forbids; a date such as 2026-99-99; thousands of brackets.
        raise InvalidYamlError(f"is not valid YAML ({' '.join(str(error).split())})") from None
    if _holds_itself(value, [], set()):
        raise RepeatedKeyError("holds itself (an alias stands within its own anchor); write it out")
    return value


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML file; an empty file has none.

    Raises
    ------
    UserError
        It is missing, no file, not UTF-8, not YAML, holds a key twice, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"configuration file {path} does not exist; run from the repository root") from None
    except IsADirectoryError:
        raise UserError(f"configuration file {path} is a folder; name the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"configuration file {path} is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); save "
            "it as UTF-8"
        ) from None
    try:
        settings = parse_yaml(text)
    except UserError as error:
        raise UserError(f"configuration file {path} {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold `key: value` settings, found a {type(settings).__name__}")
    return settings


def _lines(first: int, second: int) -> str:
    return f"line {first}" if first == second else f"line {first} and line {second}"


def _holds_itself(value: Any, above: list[int], seen: set[int]) -> bool:
    if not isinstance(value, dict | list):
        return False
    if id(value) in above:
        return True
    if id(value) in seen:  # many aliases of one
        return False
    seen.add(id(value))
    parts = value.values() if isinstance(value, dict) else value
    return any(_holds_itself(part, [*above, id(value)], seen) for part in parts)

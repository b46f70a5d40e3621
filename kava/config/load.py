"""Preset + config.yaml + overrides → one validated `Config`, or one sentence that says what is wrong."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from kava.config.schema import Config
from kava.config.strict_yaml import InvalidYamlError, parse_yaml, read_settings
from kava.config.training import GRADIENT
from kava.errors import UserError
from kava.text import from_outside

PACKAGE = Path(__file__).resolve().parents[1]
# The checkout; of an installed wheel only the folder of packages, which holds no workflow.
REPOSITORY = PACKAGE.parent
PRESETS = PACKAGE / "config" / "presets"
DEFAULT_PRESET: Final[str] = Config.model_fields["preset"].default


def load_config(file: Path | str | None = "config.yaml", overrides: Mapping[str, Any] | None = None) -> Config:
    """Merge preset, file and overrides (later wins) and validate the result.

    Parameters
    ----------
    file
        YAML file; None for none.
    overrides
        What `--config` and `--configfile` of Snakemake, or `--set` of `kava`, gave.

    Raises
    ------
    UserError
        A file that is missing or not YAML, an unknown preset or key, a value out of range.
    """
    _refuse_broken_yaml(overrides or {})
    settings = merge(read_settings(Path(file)) if file else {}, _with_nulls(overrides or {}))
    preset = settings.get("preset", DEFAULT_PRESET)
    settings = merge({"preset": preset, **read_preset(preset)}, settings)
    if isinstance(settings.get("arms"), Mapping):
        settings["arms"] = {name: arm for name, arm in settings["arms"].items() if arm is not None}
    return _validate(settings)


def read_preset(name: str) -> dict[str, Any]:
    """The settings of one file of `kava/config/presets/`, its own `preset:` merged underneath."""
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in names:
        close = get_close_matches(str(name), names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"unknown preset {name!r}; {hint}presets in {PRESETS}: {', '.join(names)}")
    settings = read_settings(PRESETS / f"{name}.yaml")
    base = settings.pop("preset", None)
    return merge(read_preset(base), settings) if base else settings


# Where a model or data set comes from → what is said of that one, and of no other.
OF_THE_SAME: Final = {"model": ("revision", "trust_remote_code"), "path": ("revision",)}


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings deeply.

    An override that changes a ``kind`` replaces that whole mapping, since the settings of one kind mean nothing to
    another (``{kind: mse, alpha: 1.0}`` would arise). One that names another ``model`` or ``path`` does not keep the
    ``revision`` of the former, which would be a commit of another repository.
    """
    merged = dict(base)
    for place, of_it in OF_THE_SAME.items():
        if place in override and override[place] != base.get(place):
            merged = {key: value for key, value in merged.items() if key not in of_it}
    for key, value in override.items():
        old = merged.get(key)
        if not isinstance(value, Mapping) or not isinstance(old, Mapping):
            merged[key] = value
        elif "kind" in value and value["kind"] != old.get("kind", GRADIENT):
            merged[key] = dict(value)
        else:
            merged[key] = merge(old, value)
    return merged


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["distill.steps=10", "arms={flat: null}"]` → nested settings; values are YAML."""
    settings: dict[str, Any] = {}
    for assignment in map(from_outside, assignments):
        path, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment!r}: expected KEY=VALUE, for example --set distill.steps=10")
        try:
            nested: Any = parse_yaml(value)
        except UserError as error:
            raise UserError(f"--set {assignment!r}: the value {error}") from None
        for key in reversed(path.split(".")):
            nested = {key: nested}
        settings = merge(settings, nested)
    return settings


def check_typed(files: Iterable[Path], arguments: Iterable[str]) -> None:
    """Read again what Snakemake has read: its loader keeps the last of equal keys, and says nothing.

    Parameters
    ----------
    files
        Of `--configfile`.
    arguments
        Of the command line; those of the form ``name={...}`` are settings.

    Raises
    ------
    UserError
        As `read_settings`; or a setting of the command line holds a key twice.
    """
    for file in files:
        if file.suffix != ".json":  # whose tabs are no YAML
            read_settings(file)
    for argument in arguments:
        if not re.match(r"\w[\w-]*=\s*[{\[]", argument):
            continue
        try:
            with suppress(InvalidYamlError):  # a text, to Snakemake
                parse_yaml(argument.partition("=")[2])
        except UserError as error:
            raise UserError(f"--config {argument!r}: the value {error}") from None


def _refuse_broken_yaml(overrides: Mapping[str, Any]) -> None:
    """Snakemake's `--config` takes a value that is no YAML for text; say so, where the setting is no text."""
    for key, value in overrides.items():
        field = Config.model_fields.get(key)
        if field is None or field.annotation is str or not isinstance(value, str):
            continue
        try:
            parse_yaml(value)
        except UserError as error:
            raise UserError(
                f"configuration: {key}={value} {error}; close every bracket, and put the whole assignment in quotes: "
                "--config 'arms={structured: {loss: {kind: mse}}}'"
            ) from None


def _with_nulls(value: Any) -> Any:
    """Snakemake reads null in `--config` as the word; no setting of ours is called that."""
    if isinstance(value, Mapping):
        return {key: _with_nulls(nested) for key, nested in value.items()}
    return None if value == "null" else value


def _validate(settings: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        # A default that follows from other settings is none where those are wrong, which is said already.
        lines = [_sentence(details) for details in error.errors() if details["type"] != "default_factory_not_called"]
        raise UserError("configuration: " + "; ".join(lines)) from None


def _sentence(details: Any) -> str:
    where = ".".join(str(part) for part in details["loc"]) or "top level"
    message = details["msg"].removeprefix("Value error, ")
    value = details.get("input")
    shown = "" if isinstance(value, dict | list) else f" (got {value!r})"
    return f"{where}: {message}{shown}"

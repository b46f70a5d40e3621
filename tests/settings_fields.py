"""Every field of every settings model, found in the models themselves, and another valid value for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from kava.config.base import Settings
from kava.config.load import merge
from kava.config.schema import Config

ARM = "a"  # of `arms`, the one whose fields are walked


@dataclass(frozen=True)
class Setting:
    """A field that can be changed.

    Attributes
    ----------
    path
        Dotted, as in the documentation of settings.
    annotation
        Its type.
    given
        Settings under which the field is there: the kinds that hold it.
    """

    path: str
    annotation: Any
    given: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        kinds = [kind for settings in self.given for kind in _kinds(settings)]
        return f"{self.path}[{','.join(kinds)}]" if kinds else self.path


def settings_of(model: type[Settings] = Config, path: str = "", given: tuple[Any, ...] = ()) -> Iterator[Setting]:
    """Walk a model: plain fields, nested models, every member of a union, and the choice between them."""
    for name, field in model.model_fields.items():
        here, members = f"{path}{name}", models_in(field.annotation)
        if name == "kind":
            continue  # the choice that `members` of the field above are
        if get_origin(field.annotation) is dict:
            (of_each,) = members
            yield from settings_of(of_each, f"{here}.{ARM}.", given)
            continue
        chosen = len(members) > 1 or NoneType in _flat(field.annotation)
        if chosen or not members:
            yield Setting(here, field.annotation, given)
        for member in members:
            under = (*given, nested(here, _start(member))) if chosen else given
            yield from settings_of(member, f"{here}.", under)


def another(setting: Setting, base: dict[str, Any], contexts: list[dict[str, Any]]) -> tuple[Config, Config] | None:
    """Two valid configurations that differ in one field; None if there is no such pair.

    Parameters
    ----------
    base
        Settings to start from.
    contexts
        Further ones, of which the first is taken under which the field can be changed.
    """
    for context in contexts:
        settings = reduce(merge, (*setting.given, context), base)
        if (before := _valid(settings)) is None:
            continue
        names = setting.path.split(".")
        if names[:1] == ["arms"] and names[1] not in before.arms:
            continue
        value = reduce(lambda x, name: x[name] if isinstance(x, dict) else getattr(x, name), names, before)  # type: ignore[arg-type, return-value]
        for other in _others(setting.annotation, value):
            changed = _valid(merge(settings, nested(setting.path, other)))
            if changed is not None and changed != before:
                return before, changed
    return None


def nested(path: str, value: Any) -> dict[str, Any]:
    """`"a.b"`, 1 → `{"a": {"b": 1}}`."""
    return reduce(lambda inner, name: {name: inner}, reversed(path.split(".")), value)


def models_in(annotation: Any) -> list[type[Settings]]:
    return [part for part in _flat(annotation) if isinstance(part, type) and issubclass(part, Settings)]


def _flat(annotation: Any) -> list[Any]:
    """Plain types, models and literal values that a type is made of, those of a list not."""
    if get_origin(annotation) in (None, list, tuple):
        return [annotation]
    return [part for argument in get_args(annotation) for part in _flat(argument)]


def _start(model: type[Settings]) -> dict[str, Any]:
    return {"kind": model.model_fields["kind"].default} if "kind" in model.model_fields else {}


def _kinds(settings: Any) -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _kinds(value)
        elif name == "kind":
            yield value


def _valid(settings: dict[str, Any]) -> Config | None:
    arms = {name: arm for name, arm in settings["arms"].items() if arm is not None}
    try:
        return Config.model_validate(settings | {"arms": arms})
    except ValidationError:
        return None


def _others(annotation: Any, value: Any) -> list[Any]:
    """Values to try in place of one; the first that is valid is taken."""
    if members := models_in(annotation):
        kind = value.model_dump().get("kind") if isinstance(value, Settings) else None
        found: list[Any] = [_start(member) for member in members if value is None or _start(member).get("kind") != kind]
        return [*found, *([None] if NoneType in _flat(annotation) and value is not None else [])]
    if isinstance(value, list):
        return [[*value, max(value) + 1] if isinstance(value[0], int) else value[:-1]]
    parts = _flat(annotation)
    if bool in parts:
        return [not value]
    if int in parts:
        n = value or 0
        return [n + 1, n + 2, 2 * n, n - 1, 4]
    if float in parts:
        x = value or 0.0
        return [x / 2, x + 0.125, 2 * x, 0.5]
    if str in parts:
        return [f"{value or ''}x"]
    return [part for part in parts if isinstance(part, str) and part != value]

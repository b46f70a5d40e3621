"""The base of all settings, and the types that several use."""

import os
import re
import sys
import unicodedata
from difflib import get_close_matches
from typing import Annotated, Any, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kava.errors import UserError

CACHE_VARIABLE = "KAVA_CACHE"
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# Of a model, from 0.
Layer = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
# A name is a folder's, to which others are added; file systems take 255 bytes.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
# NumPy's generators take no more.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


def place(text: str) -> str:
    """A path or hub id with `~` and `$VARIABLES` replaced, once, so that all who read it go to one place.

    Raises
    ------
    UserError
        A URL, a variable that is not set, a home folder that nobody knows, or characters that no path of ours has.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise UserError(f"{text!r} is a URL, and only folders of this machine are read and written; name a folder")
    if not text or text != text.strip() or any(unicodedata.category(letter) == "Cc" for letter in text):
        raise UserError(
            f"{text!r} is empty, begins or ends in white space, or holds a line break or another control character; "
            "name a folder without"
        )
    expanded = os.path.expandvars(text)
    if missing := re.search(r"\$(\w+|\{[^}]*\})", expanded):
        raise UserError(f"{text!r} names the variable {missing[0]}, which is not set; set it, or write the folder out")
    if expanded.startswith("~"):
        expanded = os.path.expanduser(expanded)
        if expanded.startswith("~"):
            raise UserError(f"{text!r} names a home folder that is not known; set HOME, or write the folder out")
    try:
        expanded.encode()
        os.fsencode(expanded)
    except UnicodeEncodeError:
        raise UserError(
            f"{text!a} holds letters that this locale ({sys.getfilesystemencoding()}) has no bytes for; "
            "`export LC_ALL=C.UTF-8`"
        ) from None
    return expanded


def cache_from_environment() -> str | None:
    """$KAVA_CACHE as a place; None if it is not set, or empty."""
    cache = os.environ.get(CACHE_VARIABLE)
    return place(cache) if cache else None


Place = Annotated[str, AfterValidator(place)]


class How:
    """Mark of a setting that says how or where a stage runs, and not what it makes: no spec holds it.

    Stages get it beside their spec, so that a change of it runs nothing again.
    """


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error that names the nearest right one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def how(cls) -> set[str]:
        """Names of the settings that are marked `How`."""
        return {name for name, field in cls.model_fields.items() if How in field.metadata}

    def without_how(self) -> Self:
        """As a spec holds it: what is marked `How` at its default."""
        return self.model_validate(self.model_dump(exclude=self.how()))

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    close = get_close_matches(str(key), cls.model_fields, n=1)
                    hint = f"did you mean {close[0]!r}? " if close else ""
                    raise ValueError(f"unknown key {key!r}; {hint}allowed: {', '.join(cls.model_fields)}")
                if isinstance(data[key], bool) and _is_number(cls.model_fields[key].annotation):
                    raise ValueError(f"{key} is {str(data[key]).lower()}, and a number is expected; write the number")
                if not _is_place(cls.model_fields[key]) and _half_a_character(data[key]):
                    raise ValueError(f"{key} holds half of a surrogate pair, which is no character; correct it")
        return data


def _is_number(annotation: Any) -> bool:
    """Whether a setting is a number, or a number or null; YAML's `yes` and `on` are true, which Python takes for 1."""
    if get_origin(annotation) is Annotated:
        return _is_number(get_args(annotation)[0])
    of_union = [part for part in get_args(annotation) if part is not type(None)]
    return annotation in (int, float) or (len(of_union) == 1 and _is_number(of_union[0]))


def _is_place(field: Any) -> bool:
    """Whether a setting is a path, whose bytes need not be those of text."""
    return any(getattr(validator, "func", None) is place for validator in field.metadata)


def _half_a_character(value: Any) -> bool:
    return isinstance(value, str) and any(unicodedata.category(letter) == "Cs" for letter in value)

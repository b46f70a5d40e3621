"""Settings of tests, written as in a configuration, as the objects that code takes."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from kava.config import arms, kv
from kava.config.base import Settings
from kava.kv import Geometry
from kava.select import Selector, make_selector
from kava.store.codecs import Codec, make_codec


def _parsed(kind: Any, settings: dict[str, Any] | Settings) -> Any:
    return TypeAdapter(kind).validate_python(settings)


def aligner(settings: dict[str, Any] | Settings) -> Any:
    return _parsed(arms.Aligner, settings)


def layer_map(settings: dict[str, Any]) -> Any:
    return _parsed(arms.LayerMap, settings)


def scores(settings: dict[str, Any]) -> Any:
    return _parsed(kv.Importance, settings)


def selection(settings: dict[str, Any] | None) -> Any:
    return None if settings is None else _parsed(kv.Selection, settings)


def selector_of(settings: dict[str, Any]) -> Selector[Any]:
    return make_selector(selection(settings))


def codec_of(settings: dict[str, Any], geometry: Geometry) -> Codec[Any]:
    return make_codec(_parsed(kv.Codec, settings), geometry)

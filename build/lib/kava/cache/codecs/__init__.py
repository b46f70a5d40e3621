"""Codecs: how KV becomes plain arrays, and back.

To add one: its settings in `kava/config/kv.py` (a `kind`), one file here, and its class in `CODECS`.
"""

from typing import Any

from kava.cache.capture import Geometry
from kava.cache.codecs.base import Calibration, Codec, KvBlock, TokenInfo
from kava.cache.codecs.bf16 import Bf16
from kava.cache.codecs.int4 import Int4
from kava.cache.codecs.int8 import Int8
from kava.cache.codecs.transform import Transform

CODECS: tuple[type[Codec], ...] = (Bf16, Int8, Int4, Transform)

__all__ = ["CODECS", "Calibration", "Codec", "KvBlock", "TokenInfo", "make_codec"]


def make_codec(settings: dict[str, Any], geometry: Geometry) -> Codec:
    """Codec for the settings `{kind: …}` of the configuration."""
    options = {name: value for name, value in settings.items() if name != "kind"}
    return {codec.kind: codec for codec in CODECS}[settings["kind"]](geometry, **options)

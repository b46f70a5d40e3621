"""Codecs: how KV becomes plain arrays, and back.

To add one: its settings in `kava/config/kv.py` (a `kind`), one file here, and its class in `CODECS`.
"""

from typing import Any

from kava.config.kv import Codec as CodecSettings
from kava.kv import Geometry, KeysValues
from kava.store.codecs.base import Calibration, Codec, TokenInfo
from kava.store.codecs.bf16 import Bf16
from kava.store.codecs.int4 import Int4
from kava.store.codecs.int8 import Int8
from kava.store.codecs.transform import Transform

CODECS: tuple[type[Codec[Any]], ...] = (Bf16, Int8, Int4, Transform)

__all__ = ["CODECS", "Calibration", "Codec", "KeysValues", "TokenInfo", "make_codec"]


def make_codec(settings: CodecSettings, geometry: Geometry) -> Codec[Any]:
    """Codec of its settings."""
    return {codec.kind: codec for codec in CODECS}[settings.kind](settings, geometry)

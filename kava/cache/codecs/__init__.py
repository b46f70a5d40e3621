"""Codecs: how a block of KV becomes plain arrays, and back.

To add one: its settings in `kava/config/schema.py` (a `kind`), one file here, and its class in `CODECS`.
"""

from kava.cache.codecs.base import TOKENS_PER_GROUP, ArraySpec, Codec
from kava.cache.codecs.bf16 import Bf16
from kava.cache.codecs.int8 import Int8

CODECS: tuple[type[Codec], ...] = (Bf16, Int8)

__all__ = ["CODECS", "TOKENS_PER_GROUP", "ArraySpec", "Codec", "make_codec"]


def make_codec(settings: dict[str, object]) -> Codec:
    """Codec for the settings `{kind: …}` of the configuration."""
    options = {name: value for name, value in settings.items() if name != "kind"}
    return {codec.kind: codec for codec in CODECS}[str(settings["kind"])](**options)

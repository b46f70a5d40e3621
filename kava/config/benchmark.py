"""Which codecs a benchmark of stores compares, by the names under which it reports them."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter

from kava.config.kv import Codec, TransformCodec

LIKE_INT4: Final = "transform-int4"
# Name → settings; those of LIKE_INT4 are searched for, so that it is as faithful as int4.
CODECS: Final[dict[str, dict[str, Any]]] = {
    "bf16": {"kind": "bf16"},
    "int8": {"kind": "int8"},
    "int4": {"kind": "int4"},
    "transform-0.99": TransformCodec(target_cos=0.99).model_dump(),
    "transform-0.95": TransformCodec(target_cos=0.95).model_dump(),
    LIKE_INT4: {},
}
# Enough for the parameters of a transform to be spread as in a real store, and half a minute for the demo. A larger
# teacher's KV is measured on as many tokens as these bytes hold in fp32; the measurement needs a few times as many.
REPORT_TOKENS: Final = 16384
REPORT_BYTES: Final = 2**27
# A transform turns all layers and heads together: beyond so many channels its calibration alone takes minutes and
# gigabytes, and a few tokens would not pay for its parameters.
REPORT_ROTATED: Final = 1024


def codecs_for_report(configured: Codec) -> dict[str, Codec]:
    """All but the one that takes a search, and the configured codec where it is none of them."""
    codecs = {name: _parsed(settings) for name, settings in CODECS.items() if name != LIKE_INT4}
    return codecs if configured in codecs.values() else codecs | {f"{configured.kind}, as configured": configured}


def _parsed(settings: dict[str, Any]) -> Codec:
    codec: Codec = TypeAdapter(Codec).validate_python(settings)
    return codec


def too_wide(codecs: Mapping[str, Codec], channels: int, most: int) -> dict[str, str]:
    """Name → why it is left out, for each transform of a teacher with more than `most` channels of K (or V)."""
    if channels <= most:
        return {}
    why = f"rotates all {channels:,} channels together, which takes minutes; `kava bench store` measures it"
    return {name: why for name, settings in codecs.items() if settings.kind == "transform"}

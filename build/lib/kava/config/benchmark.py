"""Which codecs a benchmark of stores compares, by the names under which it reports them."""

from typing import Any, Final

from kava.config.kv import TransformCodec

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
# Enough for the parameters of a transform to be spread as in a real store, and half a minute for the demo.
REPORT_TOKENS: Final = 16384


def codecs_for_report(configured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All but the one that takes a search, and the configured codec where it is none of them."""
    codecs = {name: settings for name, settings in CODECS.items() if name != LIKE_INT4}
    return codecs if configured in codecs.values() else codecs | {f"{configured['kind']}, as configured": configured}

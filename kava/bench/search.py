"""The transform that is as faithful as another codec, sought by trials."""

from collections.abc import Callable
from typing import Any, Final

from kava.bench.codecs import store_key
from kava.bench.fidelity import Fidelity
from kava.bench.source import Source
from kava.config.kv import TransformCodec
from kava.errors import UserError
from kava.store.contents import Contents
from kava.store.shard import ENCODE_TOKENS

SEARCH_STEPS: Final = 6
# The search may end this far above the goal, as a share of what is missing to a cosine of 1.
SLACK: Final = 0.03


def as_faithful_as(cos: float, source: Source, say: Callable[[str], object]) -> dict[str, Any]:
    """Settings of the smallest `transform` whose measured raw cosine, mean over K and V, is at least `cos`.

    What is missing to a cosine of 1, as aimed at (centred, worst head) and as measured (raw, mean of all), are nearly
    proportional, so that a few corrections meet.

    Raises
    ------
    UserError
        The transform does not reach it.
    """
    wanted = 1 - cos
    aim, best = wanted, None
    for _ in range(SEARCH_STEPS):
        settings = TransformCodec(target_cos=1 - aim).model_dump()
        missing = 1 - _cos_in_memory(source, settings)
        say(f"target_cos {1 - aim:.6f} gives a cosine of {1 - missing:.6f}, wanted {cos:.6f}")
        if missing <= wanted and (best is None or aim > 1 - best["target_cos"]):
            best = settings
            if missing >= wanted * (1 - SLACK):
                break
        aim = min(aim * wanted / missing * (1 - SLACK / 3), 0.999)
    if best is None:
        raise UserError(f"no target_cos of the transform gives a cosine of {cos:.6f}")
    return best


def _cos_in_memory(source: Source, settings: dict[str, Any]) -> float:
    """What `measure_codec` would find, without a store."""
    codec = Contents(store_key(settings), source.geometry, source.geometry.channels).codec
    codec.calibrate(source.calibration(codec.calibration_tokens))
    fidelity = Fidelity(source.mean())
    for split, kv in source.kv.items():
        for first in range(0, len(kv.keys), ENCODE_TOKENS):
            block, info = source.part(split, slice(first, first + ENCODE_TOKENS))
            fidelity.add(block, codec.decode(codec.encode(block, info), 0, info))
    return float(fidelity.result().cos.mean())

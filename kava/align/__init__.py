"""Aligners: teacher KV → student geometry.

To add one: its settings in `kava/config/arms.py` (a `kind`), one file here with the contract of `Aligner`, and its
class in `ALIGNERS`.
"""

from typing import Any

from kava.align.base import Aligner
from kava.align.flat import Flat
from kava.align.flat_matched import FlatMatched
from kava.align.linear import Linear
from kava.align.structured import Structured
from kava.kv import Geometry

ALIGNERS: tuple[type[Aligner], ...] = (Flat, Linear, FlatMatched, Structured)

__all__ = ["ALIGNERS", "Aligner", "make_aligner"]


def make_aligner(settings: dict[str, Any], teacher: Geometry, student: Geometry) -> Aligner:
    """Aligner for the settings `{kind: …}` of the configuration."""
    options = {name: value for name, value in settings.items() if name != "kind"}
    return {aligner.kind: aligner for aligner in ALIGNERS}[settings["kind"]](teacher, student, **options)

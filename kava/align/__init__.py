"""Aligners: teacher KV → student geometry.

To add one: its settings in `kava/config/arms.py` (a `kind`), one file here with the contract of `Aligner`, and its
class in `ALIGNERS`.
"""

from typing import Any

from kava.align.base import Aligner
from kava.align.flat import Flat
from kava.align.flat_matched import FlatMatched
from kava.align.identity import Identity
from kava.align.linear import Linear
from kava.align.structured import Structured
from kava.config.arms import Aligner as AlignerSettings
from kava.kv import Geometry

ALIGNERS: tuple[type[Aligner[Any]], ...] = (Flat, Linear, FlatMatched, Structured, Identity)

__all__ = ["ALIGNERS", "Aligner", "make_aligner"]


def make_aligner(settings: AlignerSettings, teacher: Geometry, student: Geometry) -> Aligner[Any]:
    """Aligner of its settings."""
    return {aligner.kind: aligner for aligner in ALIGNERS}[settings.kind](settings, teacher, student)

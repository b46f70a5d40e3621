"""Selectors: which tokens' KV is kept.

To add one: its settings in `kava/config/kv.py` (a `kind`), one file here, and its class in `SELECTORS`.
"""

from typing import Any

from kava.config.kv import Selection
from kava.select.base import Selector
from kava.select.full import Full
from kava.select.random import Random
from kava.select.right_crop import RightCrop
from kava.select.rkv import Rkv
from kava.select.rkv_window import RkvWindow
from kava.select.uniform import Uniform

SELECTORS: tuple[type[Selector[Any]], ...] = (Full, RightCrop, Rkv, RkvWindow, Uniform, Random)

__all__ = ["SELECTORS", "Selector", "make_selector"]


def make_selector(settings: Selection) -> Selector[Any]:
    """Selector of its settings."""
    return {selector.kind: selector for selector in SELECTORS}[settings.kind](settings)

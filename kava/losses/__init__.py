"""Losses between projected teacher KV and student KV.

To add one: its settings in `kava/config/schema.py` (a `kind`), one file here with a pure function of
(student, teacher, mask, **settings), and the function in `LOSSES` under that kind.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kava.losses.mercator import mercator
from kava.losses.mse import mse

LOSSES: dict[str, Callable[..., Tensor]] = {"mercator": mercator, "mse": mse}


def kv_loss(settings: dict[str, Any], student: Tensor, teacher: Tensor, mask_BT: Tensor) -> Tensor:
    """Loss of the settings `{kind: …}` on tensors `[B, L, H, T, D]`, a scalar."""
    options = {name: value for name, value in settings.items() if name not in ("kind", "center")}
    return LOSSES[settings["kind"]](student, teacher, mask_BT, **options)

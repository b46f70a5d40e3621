"""Losses between projected teacher KV and student KV, and auxiliary losses beside them.

To add a KV loss: its settings in `kava/config/arms.py` (a `kind`), one file here with a pure function of
(student, teacher, weight_BT, **settings), and the function in `LOSSES` under that kind.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kava.losses.hybrid import hybrid
from kava.losses.mercator import mercator
from kava.losses.mse import mse
from kava.losses.smooth_l1 import smooth_l1
from kava.losses.structural import structural

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mercator": mercator,
    "mse": mse,
    "smooth_l1": smooth_l1,
    "hybrid": hybrid,
    "structural": structural,
}

# Settings that say what is compared, or when, and are no parameters of the formula: of every loss, and of one kind.
_AROUND_THE_FORMULA = frozenset({"kind", "center", "standardize", "granularity", "weights"})
_AROUND_ONE = {"hybrid": {"schedule"}, "structural": {"attention"}}


def kv_loss(
    settings: dict[str, Any], student: Tensor, teacher: Tensor, weight_BT: Tensor, progress: float = 1.0
) -> Tensor:
    """Loss between one tensor (keys or values) of the student and of the projected teacher, a scalar.

    Parameters
    ----------
    settings
        An arm's `loss`, as JSON values. `center`, `standardize`, `weights` and the `attention` of `structural` are
        the caller's part.
    student, teacher
        `[B, L, H, T, D]`. Float64 is computed in float64, everything else in float32.
    weight_BT
        Weight of each token; one of weight 0 has no influence, whatever its vectors hold. Only ratios of weights
        matter, and the loss is NaN where all are 0.
    progress
        Share of training that is done, 0 to 1, for the schedule of `hybrid`.
    """
    around = _AROUND_THE_FORMULA | _AROUND_ONE.get(settings["kind"], set())
    options = {name: value for name, value in settings.items() if name not in around}
    if settings["kind"] == "hybrid" and settings["schedule"] == "linear":
        options |= {"mercator": progress, "mse": 1.0 - progress}
    if settings["granularity"] == "token":
        student, teacher = _heads_side_by_side(student), _heads_side_by_side(teacher)
    return LOSSES[settings["kind"]](student, teacher, weight_BT, **options)


def _heads_side_by_side(tensor_BLHTD: Tensor) -> Tensor:
    """One vector per layer and token: `[B, L, 1, T, H·D]`."""
    return tensor_BLHTD.transpose(2, 3).flatten(3).unsqueeze(2)

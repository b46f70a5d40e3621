"""Losses between projected teacher KV and student KV, and auxiliary losses beside them.

To add a KV loss: its settings in `kava/config/arms.py` (a `kind`), one file here with a pure function of (student,
teacher, weight_BT, …), and its case in `kv_loss`. To add an auxiliary loss: its settings in
`kava/config/auxiliary.py` (a field of `Auxiliaries`), one file here with a class that says what it reads, and the class
in `AUXILIARY`.
"""

from torch import Tensor

from kava.config.arms import Arm, HybridLoss, Loss, MercatorLoss, MseLoss, SmoothL1Loss, StructuralLoss
from kava.config.auxiliary import AuxiliaryLoss
from kava.losses.auxiliary import Auxiliary
from kava.losses.cka import Cka
from kava.losses.codi import Codi
from kava.losses.hidden import Hidden
from kava.losses.hybrid import hybrid
from kava.losses.logit_kd import LogitKd
from kava.losses.mercator import mercator
from kava.losses.mse import mse
from kava.losses.smooth_l1 import smooth_l1
from kava.losses.structural import structural

AUXILIARY: tuple[type[Auxiliary], ...] = (Codi, LogitKd, Cka, Hidden)


def auxiliaries(arm: Arm) -> list[tuple[type[Auxiliary], AuxiliaryLoss]]:
    """The auxiliary losses of an arm, with their settings."""
    given: dict[str, AuxiliaryLoss | None] = dict(arm.auxiliary)
    return [(loss, settings) for loss in AUXILIARY if (settings := given.get(loss.name))]


def signals_read(arm: Arm) -> set[str]:
    """Names of the teacher's signals that the losses of an arm read."""
    own = {signal for loss, _ in auxiliaries(arm) for signal in loss.reads}
    return own | {"kv"} if arm.aligner else own


def kv_loss(settings: Loss, student: Tensor, teacher: Tensor, weight_BT: Tensor, progress: float = 1.0) -> Tensor:
    """Loss between one tensor (keys or values) of the student and of the projected teacher, a scalar.

    Parameters
    ----------
    settings
        An arm's `loss`. `center`, `standardize`, `weights` and the `attention` of `structural` are the caller's part.
    student, teacher
        `[B, L, H, T, D]`. Float64 is computed in float64, everything else in float32.
    weight_BT
        Weight of each token; one of weight 0 has no influence, whatever its vectors hold. Only ratios of weights
        matter, and the loss is NaN where all are 0.
    progress
        Share of training that is done, 0 to 1, for the schedule of `hybrid`.
    """
    if settings.granularity == "token":
        student, teacher = _heads_side_by_side(student), _heads_side_by_side(teacher)
    sides = student, teacher, weight_BT
    match settings:
        case MercatorLoss():
            return mercator(*sides, settings.alpha, settings.beta)
        case MseLoss():
            return mse(*sides)
        case SmoothL1Loss():
            return smooth_l1(*sides, settings.threshold, settings.layer_std)
        case HybridLoss():
            weights = settings.mercator, settings.mse
            if settings.schedule == "linear":
                weights = progress, 1.0 - progress
            return hybrid(*sides, *weights, settings.alpha, settings.beta)
        case StructuralLoss():
            return structural(*sides)


def _heads_side_by_side(tensor_BLHTD: Tensor) -> Tensor:
    """One vector per layer and token: `[B, L, 1, T, H·D]`."""
    return tensor_BLHTD.transpose(2, 3).flatten(3).unsqueeze(2)

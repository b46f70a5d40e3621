"""`hybrid`: a weighted sum of mercator and mse."""

from torch import Tensor

from kava.losses.mercator import mercator as mercator_loss
from kava.losses.mse import mse as mse_loss


def hybrid(
    student: Tensor, teacher: Tensor, weight_BT: Tensor, mercator: float, mse: float, alpha: float, beta: float
) -> Tensor:
    """mercator · `mercator`(alpha, beta) + mse · `mse`, on `[B, L, H, T, D]` with token weights `[B, T]`."""
    direction = mercator_loss(student, teacher, weight_BT, alpha, beta)
    return mercator * direction + mse * mse_loss(student, teacher, weight_BT)

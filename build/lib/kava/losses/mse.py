"""`mse`: mean squared error."""

from torch import Tensor

from kava.losses.masking import counted, masked_mean


def mse(student: Tensor, teacher: Tensor, weight_BT: Tensor) -> Tensor:
    """Weighted mean over tokens, layers, heads and dims of (s − t)²; `[B, L, H, T, D]`, weights `[B, T]`."""
    return masked_mean((counted(student, weight_BT) - counted(teacher, weight_BT)).square().mean(-1), weight_BT)

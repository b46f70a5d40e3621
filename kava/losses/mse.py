"""`mse`: mean squared error."""

from torch import Tensor

from kava.losses.masking import masked_mean


def mse(student: Tensor, teacher: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over tokens, layers, heads and dims of (s − t)²; tensors `[B, L, H, T, D]`, mask `[B, T]`."""
    return masked_mean((student.float() - teacher.float()).square().mean(-1), mask_BT)

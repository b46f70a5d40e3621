"""Weighted means over tokens that count, and norms with a gradient everywhere.

Shape suffixes: B batch, L layers, H heads, T tokens, D head dim.
"""

import torch
from torch import Tensor

EPSILON = 1e-12
# Under a standard deviation as small as this there is nothing to be measured in units of it.
SMALLEST_STD = 1e-3


def widen(tensor: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 stay."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def counted(tensor_BLHTD: Tensor, weight_BT: Tensor) -> Tensor:
    """The widened tensor with zero vectors at tokens of weight 0.

    Dropping such a token after the formula would be too late: a NaN in it has a NaN gradient even times zero.
    """
    return torch.where(weight_BT[:, None, None, :, None] > 0, widen(tensor_BLHTD), 0.0)


def masked_mean(values_BLHT: Tensor, weight_BT: Tensor) -> Tensor:
    """Weighted mean, Σ w·v / (Σ w · L·H), a scalar: `[B, L, H, T]`, weights `[B, T]`; NaN where all weights are 0."""
    weight = weight_BT[:, None, None, :].to(values_BLHT.dtype)
    count = weight.sum() * values_BLHT.shape[1] * values_BLHT.shape[2]
    # Multiplying alone would turn a NaN under a zero into a NaN loss.
    return (weight * torch.where(weight > 0, values_BLHT, 0.0)).sum() / count


def safe_norm(vectors: Tensor) -> Tensor:
    """Euclidean norm over the last dimension, with a finite gradient at zero."""
    return vectors.square().sum(-1).add(EPSILON).sqrt()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over the last dimension; 0 where a vector is zero."""
    return (a * b).sum(-1) / (safe_norm(a) * safe_norm(b))

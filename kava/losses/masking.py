"""Means over real tokens, and norms with a gradient everywhere."""

import torch
from torch import Tensor

EPSILON = 1e-12


def masked_mean(values_BLHT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over batch, layers, heads and the tokens whose mask is 1; `[B, L, H, T]`, `[B, T]` → scalar."""
    weight = mask_BT[:, None, None, :].to(values_BLHT.dtype)
    count = weight.sum() * values_BLHT.shape[1] * values_BLHT.shape[2]
    # Multiplying would turn a NaN under the mask into a NaN loss.
    return torch.where(weight > 0, values_BLHT, 0.0).sum() / count


def safe_norm(vectors: Tensor) -> Tensor:
    """Euclidean norm over the last dimension, with a finite gradient at zero."""
    return vectors.square().sum(-1).add(EPSILON).sqrt()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over the last dimension; 0 where a vector is zero."""
    return (a * b).sum(-1) / (safe_norm(a) * safe_norm(b))

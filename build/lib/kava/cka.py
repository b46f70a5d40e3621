"""Centred kernel alignment: how alike two sets of features are, whatever their rotation, scale and width.

Linear CKA of Kornblith et al. (arXiv 1905.00414) with the debiased HSIC of Song et al. (2012, eq. 5), computed from
features and never from the N × N kernels.
"""

import torch
from torch import Tensor


def linear_cka(x_NP: Tensor, y_NQ: Tensor) -> Tensor:
    """Debiased linear CKA between features of the same N samples, a scalar; 1 for equal features.

    Parameters
    ----------
    x_NP, y_NQ
        Features; any widths P and Q.

    Raises
    ------
    ValueError
        Fewer than 4 samples, of which the debiased HSIC has no value.
    """
    if len(x_NP) < 4:
        raise ValueError(f"debiased CKA needs at least 4 samples, got {len(x_NP)}")
    x, y = _prepared(x_NP), _prepared(y_NQ)
    product = hsic(x, x) * hsic(y, y)
    # Features that do not vary are like nothing; a debiased HSIC near zero may even be negative.
    tiny = torch.finfo(product.dtype).tiny
    return torch.where(product > tiny, hsic(x, y) / product.clamp(min=tiny).sqrt(), 0.0)


def cka_matrix(x_LNP: Tensor, y_MNQ: Tensor) -> Tensor:
    """CKA of every layer of x with every layer of y, in float64: `[L, N, P]`, `[M, N, Q]` → `[L, M]`."""
    x, y = _prepared(x_LNP.double()), _prepared(y_MNQ.double())
    cross = torch.stack([torch.stack([hsic(a, b) for b in y]) for a in x])
    own_x, own_y = (torch.stack([hsic(a, a) for a in side]) for side in (x, y))
    product = own_x[:, None] * own_y
    tiny = torch.finfo(product.dtype).tiny
    return torch.where(product > tiny, cross / product.clamp(min=tiny).sqrt(), 0.0)


def hsic(x_NP: Tensor, y_NQ: Tensor) -> Tensor:
    """Debiased HSIC of linear kernels K = x xᵀ and L = y yᵀ with their diagonals removed."""
    n = len(x_NP)
    diagonal_k, diagonal_l = x_NP.square().sum(-1), y_NQ.square().sum(-1)
    rows_k, rows_l = x_NP @ x_NP.sum(0) - diagonal_k, y_NQ @ y_NQ.sum(0) - diagonal_l
    trace = (x_NP.mT @ y_NQ).square().sum() - (diagonal_k * diagonal_l).sum()
    sums = rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * (rows_k * rows_l).sum()) / (n * (n - 3))


def _prepared(features: Tensor) -> Tensor:
    """Centred, which changes no debiased HSIC but keeps its terms small, and of unit size, against overflow."""
    centred = features - features.mean(-2, keepdim=True)
    scale = centred.square().mean((-1, -2), keepdim=True).add(torch.finfo(features.dtype).tiny).sqrt()
    return centred / scale

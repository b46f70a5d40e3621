"""Least squares from sums over tokens: what is gathered in one pass, ridge regression, and alternating least squares.

Shape suffixes: G problems apart, N tokens, C features, K targets; H heads and D head dim, of the teacher (t) or the
student (s).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kava.errors import UserError

# Of alternating least squares: at most so many sweeps, and none after one that lowers the loss by a smaller share.
SWEEPS = 500
CONVERGED = 1e-7


class NormalEquations(NamedTuple):
    """Second moments about the means, and the means; float64.

    `xx` is `[G, C, C]`, `xy` `[G, C, K]`, `mean_x` `[G, C]` and `mean_y` `[G, K]`. The moments are sums over tokens.
    """

    xx: Tensor
    xy: Tensor
    mean_x: Tensor
    mean_y: Tensor


class Moments:
    """Sums over tokens of what linear problems need: products in float32, which are summed in float64."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sums: list[Tensor] = []

    def add(self, x_GNC: Tensor, y_GNK: Tensor) -> None:
        """Features and targets of more tokens."""
        self.tokens += x_GNC.shape[1]
        if not self._sums:
            self._sums = [product.double() for product in _products(x_GNC, y_GNK)]
            return
        for total, product in zip(self._sums, _products(x_GNC, y_GNK), strict=True):
            total += product

    def about_the_means(self) -> NormalEquations:
        """The equations, in the memory of the sums, which are gone then."""
        (xx, xy, x, y), n = self._sums, self.tokens
        self._sums = []
        xx.baddbmm_(x[:, :, None], x[:, None, :], alpha=-1 / n)
        xy.baddbmm_(x[:, :, None], y[:, None, :], alpha=-1 / n)
        return NormalEquations(xx, xy, x / n, y / n)


def _products(x_GNC: Tensor, y_GNK: Tensor) -> Iterator[Tensor]:
    """One at a time: that of the features of all channels is the largest tensor of a phase."""
    yield x_GNC.mT @ x_GNC
    yield x_GNC.mT @ y_GNK
    yield x_GNC.sum(1, dtype=torch.float64)
    yield y_GNK.sum(1, dtype=torch.float64)


def moment_bytes(groups: int, features: int, targets: int) -> int:
    """Bytes of the moments of keys and of values, and of the factor and the solution for one of them."""
    return 3 * 8 * groups * features * (features + targets)


def with_ridge(xx_GCC: Tensor, ridge: float) -> Tensor:
    """Add to the diagonal, in place, a share of its own mean."""
    diagonal = xx_GCC.diagonal(dim1=1, dim2=2)
    diagonal += ridge * diagonal.mean(1, keepdim=True)
    return xx_GCC


def ridge_regression(normal: NormalEquations, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights `[G, K, C]` and biases `[G, K]` of the least squares; biases bear no penalty.

    Parameters
    ----------
    normal
        `xx` is changed.
    ridge
        Penalty of the squared weights, as a share of the mean of `xx`'s diagonal.

    Raises
    ------
    UserError
        The equations are singular to float32's rounding, or not finite.
    """
    factor, failed = torch.linalg.cholesky_ex(with_ridge(normal.xx, ridge))
    if failed.any() or not factor.isfinite().all():
        raise UserError(
            f"the normal equations of {normal.xx.shape[1]} features have no solution with pretrain.ridge: {ridge:g}, "
            "since features depend on each other or are not finite; raise it, to 1e-3 for example"
        )
    weight = torch.cholesky_solve(normal.xy, factor).mT
    return weight, normal.mean_y - (weight @ normal.mean_x.unsqueeze(-1)).squeeze(-1)


def alternating(
    xx: Tensor, xy: Tensor, mixer: Tensor, shared: tuple[bool, bool], orthogonal: bool = False
) -> tuple[Tensor, Tensor, list[float]]:
    """Head mixers and dim projections whose product is the least-squares map, by turns, each exact given the other.

    Target s of layer l is P · Σ_h m[h] · x[h]. From given mixers on: projections, mixers, and so on until a sweep
    lowers the loss no more. The optimum is a local one. Rotations are those of orthogonal Procrustes (Schönemann 1966).

    Parameters
    ----------
    xx, xy
        Moments `[L, H_t, D_t, H_t, D_t]` and `[L, H_t, D_t, H_s, D_s]`, float64.
    mixer
        Where to start, `[L, H_s, H_t]`.
    shared
        Whether layers, and whether heads, have one projection in common.
    orthogonal
        Projections are rotations (or reflections), and D_s is D_t.

    Returns
    -------
    mixer, projection
        `[L, H_s, H_t]`, and `[L or 1, H_s or 1, D_s, D_t]`.
    losses
        After each sweep: the sum of squares less that of the targets.
    """
    over = [axis for axis, one in enumerate(shared) if one]
    losses: list[float] = []
    while len(losses) < SWEEPS:
        fitted = torch.einsum("lsh,lhdsk->lskd", mixer, xy)
        fitted = fitted.sum(over, keepdim=True) if over else fitted
        if orthogonal:
            left, _, right = torch.linalg.svd(fitted)
            projection = left @ right
        else:
            square = torch.einsum("lsh,lhdje,lsj->lsde", mixer, xx, mixer)
            square = square.sum(over, keepdim=True) if over else square
            projection = fitted @ torch.linalg.pinv(square, hermitian=True)
        of_each = projection.expand(*mixer.shape[:2], -1, -1)
        square = torch.einsum("lsde,lhdje->lshj", of_each.mT @ of_each, xx)
        fitted = torch.einsum("lskd,lhdsk->lsh", of_each, xy)
        mixer = (torch.linalg.pinv(square, hermitian=True) @ fitted.unsqueeze(-1)).squeeze(-1)
        # At the best mixer the quadratic term is half of the linear one.
        losses.append(-float((mixer * fitted).sum()))
        if len(losses) > 1 and losses[-2] - losses[-1] <= -CONVERGED * losses[-1]:
            break
    return mixer, projection, losses

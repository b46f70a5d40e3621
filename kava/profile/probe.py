"""The linear probe: how much of a student's KV a linear map of the teacher's predicts, on examples it never saw.

Shape suffixes: N fitted tokens, M scored tokens, P features, H heads, D head dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kava.align.projector import STD_FLOOR

# Ridge strengths over the number of fitted tokens; features have unit variance, so the last leaves next to nothing.
STRENGTHS = tuple(10.0**k for k in (-6, -4, -3, -2, -1, 0, 1, 2, 4))


class Halves(NamedTuple):
    """Rows of the tokens that are fitted and of those that are scored; the fitted ones in two folds."""

    fit: Tensor
    score: Tensor
    folds: tuple[Tensor, Tensor]

    @classmethod
    def by_example(cls, example_N: Tensor) -> "Halves":
        """Examples take turns and none is cut in two: the tokens of one example say too much of each other."""
        number = example_N.unique(return_inverse=True)[1]
        rows = [(number % 4 == turn).nonzero().squeeze(-1) for turn in range(4)]
        folds = rows[0], rows[2]
        return cls(torch.cat(folds), torch.cat((rows[1], rows[3])), folds)


class Prediction(NamedTuple):
    """Scored tokens `[M, H, D]` as predicted, and how well the folds of the fitted half predict each other.

    `fold_r2` `[H]` is the share of variance explained; not finite for heads that do not vary.
    """

    scored: Tensor
    fold_r2: Tensor


class LinearProbe:
    """Ridge regression from fixed features to any target.

    Its strength is chosen for every head by the error that one fold of the fitted half makes on the other.

    Parameters
    ----------
    features_NP
        Features of all tokens, float64; they are standardised by the fitted ones.
    halves
        Which tokens are fitted and scored.
    """

    def __init__(self, features_NP: Tensor, halves: Halves) -> None:
        first, second = halves.folds
        self.halves = halves
        self.inner = [
            (fit, score, _Ridge(features_NP[fit], features_NP[score]))
            for fit, score in ((first, second), (second, first))
        ]
        self.outer = _Ridge(features_NP[halves.fit], features_NP[halves.score])

    def predict(self, target_NHD: Tensor) -> Prediction:
        """Predict a target that is given for all tokens."""
        errors = target_NHD.new_zeros(len(STRENGTHS), target_NHD.shape[1])
        variance = target_NHD.new_zeros(target_NHD.shape[1])
        for fit, score, ridge in self.inner:
            mean = target_NHD[fit].mean(0)
            loadings, wanted = ridge.loadings(target_NHD[fit] - mean), target_NHD[score] - mean
            variance += wanted.square().sum((0, 2))
            for i, strength in enumerate(STRENGTHS):
                errors[i] += (ridge.combine(loadings, strength) - wanted).square().sum((0, 2))
        best = errors.argmin(0)
        fitted = target_NHD[self.halves.fit]
        loadings = self.outer.loadings(fitted - fitted.mean(0))
        predicted = torch.empty_like(target_NHD[self.halves.score])
        for i in best.unique().tolist():
            predicted[:, best == i] = self.outer.combine(loadings[:, best == i], STRENGTHS[i])
        return Prediction(predicted + fitted.mean(0), 1 - errors.amin(0) / variance)


class _Ridge:
    """Decomposed once, for every target and strength; in the smaller of features and tokens."""

    def __init__(self, fit_NP: Tensor, score_MP: Tensor) -> None:
        mean = fit_NP.mean(0)
        std = fit_NP.std(0, correction=0).clamp(min=STD_FLOOR)
        x, z = (fit_NP - mean) / std, (score_MP - mean) / std
        if x.shape[1] <= len(x):
            self.values, vectors = torch.linalg.eigh(x.mT @ x)
            self.left, self.right = z @ vectors, vectors.mT @ x.mT
        else:
            self.values, vectors = torch.linalg.eigh(x @ x.mT)
            self.left, self.right = (z @ x.mT) @ vectors, vectors.mT
        self.tokens = len(x)

    def loadings(self, centred_NHD: Tensor) -> Tensor:
        """A target on the components, `[R, H, D]`."""
        return torch.einsum("rn,nhd->rhd", self.right, centred_NHD)

    def combine(self, loadings_RHD: Tensor, strength: float) -> Tensor:
        """Prediction `[M, H, D]` of a centred target from its loadings."""
        weights = self.left / (self.values.clamp(min=0) + strength * self.tokens)
        return torch.einsum("mr,rhd->mhd", weights, loadings_RHD)

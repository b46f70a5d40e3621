"""The least bits that any code could spend on Gaussian KV of a covariance at a given error.

Reverse water-filling (Cover and Thomas, Elements of Information Theory, section 10.3.3): components of variance above
the water level θ cost ½ log₂(variance / θ) bits, the others none and are given up.

KV is no Gaussian that comes token by token: the token id is stored anyway and determines the first layer's KV, and the
mean per id explains a part of the others. So a store that knows its tokens can lie below the bound. A second bound
takes the first layer for known, and counts what the others cost by themselves.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from kava.kv import KeysValues

# Tokens per channel: the covariance of fewer is too much that of the sample, and its bound too low.
LEAST_TOKENS_PER_CHANNEL: Final = 4


def rate(variances: np.ndarray, distortion: float) -> float:
    """Bits per component.

    Parameters
    ----------
    variances
        Eigenvalues of the covariance `[C]`.
    distortion
        Mean squared error per component that is allowed.

    Returns
    -------
    float
        Mean over all components; 0 once the error may be the variance itself.
    """
    variances = np.maximum(np.asarray(variances, np.float64), 0.0)
    if distortion >= variances.mean():
        return 0.0
    assert distortion > 0, "no error at all costs infinitely many bits"
    ascending = np.sort(variances)
    # Below its k-th variance the level is what the k smaller ones, drowned, leave to the rest.
    drowned = np.concatenate(([0.0], np.cumsum(ascending)[:-1]))
    levels = (distortion * len(ascending) - drowned) / np.arange(len(ascending), 0, -1)
    level = levels[np.argmax(levels <= ascending)]
    return float(0.5 * np.log2(np.maximum(ascending / level, 1.0)).mean())


class Bound:
    """Bound for some KV: the covariance of K and V of all layers and heads, every head scaled to unit variance.

    Parameters
    ----------
    kv
        KV of all tokens, `[T, L, H, D]` each.
    """

    def __init__(self, kv: list[KeysValues]) -> None:
        layers = kv[0].keys.shape[1]
        covariance = _covariance(kv)
        self._first_layer = len(covariance) // layers
        self._all = torch.linalg.eigvalsh(covariance).numpy()
        rest = covariance[self._first_layer :, self._first_layer :]
        self._rest = torch.linalg.eigvalsh(rest).numpy() if len(rest) else np.zeros(0)

    @staticmethod
    def enough(tokens: int, channels: int) -> bool:
        """Whether the tokens show the covariance of K and V, `channels` each."""
        return tokens >= LEAST_TOKENS_PER_CHANNEL * 2 * channels

    def ratio(self, error: Tensor) -> float:
        """Size over bf16 at a relative error per layer and head, centred, `[2, L, H]`."""
        return rate(self._all, float(error.square().mean())) / 16

    def ratio_first_layer_known(self, error: Tensor) -> float:
        """The same if the first layer costs nothing."""
        if not len(self._rest):
            return 0.0
        bits = rate(self._rest, float(error[:, 1:].square().mean())) * len(self._rest)
        return bits / len(self._all) / 16


def _covariance(kv: list[KeysValues]) -> Tensor:
    """Float64 `[C, C]`, the channels of a layer after those of the one before, heads of variance 1 or 0."""
    tokens = sum(len(block.keys) for block in kv)
    channels = 2 * kv[0].keys[0].numel()
    total = torch.zeros(channels, dtype=torch.float64)
    products = torch.zeros(channels, channels, dtype=torch.float64)
    for block in kv:
        for part in torch.stack(block, dim=2).split(4096):  # [T, L, 2, H, D]
            exact = part.flatten(1).double()
            total += exact.sum(0)
            products.addmm_(exact.T, exact)
    mean = total / tokens
    covariance = products / tokens - torch.outer(mean, mean)
    variance = covariance.diagonal().unflatten(0, (-1, kv[0].keys.shape[3])).mean(1).clamp(min=0)
    scale = torch.where(variance > 1e-12 * variance.max(), variance.rsqrt(), 0.0)
    scale = scale.repeat_interleave(kv[0].keys.shape[3])
    return covariance * scale[:, None] * scale

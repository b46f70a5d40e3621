"""How much of the teacher's KV a store gives back, per layer and head, in float64."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kava.kv import KeysValues


class HeadFidelity(NamedTuple):
    """Per layer and head, float64 `[2, L, H]`, keys before values.

    `cos` is the mean over tokens of the cosine of a head's vectors; `error` is ‖x − y‖ / ‖x‖ over all tokens. Those of
    `centered` are taken after the teacher's channel means are removed from both: a raw cosine is near 1 for a constant
    where keys are biased.
    """

    cos: Tensor
    error: Tensor
    cos_centered: Tensor
    error_centered: Tensor


class Fidelity:
    """Running sums over tokens of what was stored against what the teacher computed.

    Parameters
    ----------
    mean
        Channel means of the teacher's KV, `[L, H, D]` each.
    """

    def __init__(self, mean: KeysValues) -> None:
        self.mean = KeysValues(*(tensor.double() for tensor in mean))
        self.tokens = 0
        self._sums = torch.zeros(4, 2, *mean.keys.shape[:2], dtype=torch.float64)
        self._error = torch.zeros_like(self._sums[0])

    def add(self, exact: KeysValues, decoded: KeysValues) -> None:
        """Count tokens `[T, L, H, D]` of the teacher and of the store."""
        for tensor, (x, y, mean) in enumerate(zip(exact, decoded, self.mean, strict=True)):
            x, y = x.double(), y.double()
            self._error[tensor] += (x - y).square().sum((0, 3))
            for row, (a, b) in enumerate(((x, y), (x - mean, y - mean))):
                self._sums[2 * row, tensor] += _cosine(a, b).sum(0)
                self._sums[2 * row + 1, tensor] += a.square().sum((0, 3))
        self.tokens += len(exact.keys)

    def result(self) -> HeadFidelity:
        cos, norm, cos_centered, norm_centered = self._sums
        tiny = torch.finfo(torch.float64).tiny
        errors = [(self._error / n.clamp(min=tiny)).sqrt() for n in (norm, norm_centered)]
        return HeadFidelity(cos / self.tokens, errors[0], cos_centered / self.tokens, errors[1])


def summary(heads: HeadFidelity) -> dict[str, Any]:
    """Means over layers and heads and the worst head's, for K and V apart."""
    figures = {}
    for tensor, name in enumerate("kv"):
        for suffix, cos, error in (("", *heads[:2]), ("_centered", *heads[2:])):
            figures[f"{name}_cos{suffix}_mean"] = float(cos[tensor].mean())
            figures[f"{name}_cos{suffix}_min"] = float(cos[tensor].min())
            figures[f"{name}_rel_error{suffix}"] = float(error[tensor].mean())
    return figures


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Over the last dimension; 1 for two zero vectors, which agree."""
    both_zero = ~(a.any(-1) | b.any(-1))
    return torch.nn.functional.cosine_similarity(a, b, dim=-1, eps=1e-300).masked_fill(both_zero, 1.0)

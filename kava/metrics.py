"""Alignment metrics that a constant prediction cannot fool, on held-out examples.

Keys carry large constant biases, so predicting their mean already scores a raw cosine near 1. Every metric here is
therefore reported beside that floor, or measured after the channel means of the training slice are removed.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kava.kv import ChannelStatistics, KeysValues
from kava.losses.masking import cosine

NAMES = (
    "cos_sim", "cos_sim_centered", "cos_sim_constant", "angular_distance", "alignment_accuracy", "r2",
    "retrieval_at_1", "mag_ratio",
)  # fmt: skip
ALIGNED = 0.95  # centred cosine from which a token counts as aligned
# Share of the mean square up to which variance is no more than the rounding of float32 vectors, squared, with a margin.
ROUNDING = 1e-9


class Pair(NamedTuple):
    """Student KV and projected teacher KV of a batch, `[B, L, H, T, D]`, with ids and mask `[B, T]`."""

    student: KeysValues
    projected: KeysValues
    ids: Tensor
    mask: Tensor


@torch.inference_mode()
def alignment_metrics(
    predict: Callable[[Any], Pair], training_slice: Iterable[Any], held_out: Iterable[Any]
) -> dict[str, Any]:
    """Score a projection.

    Parameters
    ----------
    predict
        Batch → `Pair`.
    training_slice
        Batches on which channel means and the scale of `r2` are fitted.
    held_out
        Batches that are scored.

    Returns
    -------
    dict
        Means over keys, values, layers and heads:
        `cos_sim`; `cos_sim_centered` (means removed on both sides); `cos_sim_constant` (score of predicting the
        student's mean); `angular_distance` (mean angle between centred vectors over pi, 0 to 1); `alignment_accuracy`
        (share of tokens whose centred cosine is above 0.95); `r2` (share of the student's variance explained, after
        one scale per layer and head); `retrieval_at_1` (share of tokens whose centred projection is nearest, among the
        tokens of its example, to a student vector of a token with the same id); `mag_ratio` (mean centred norm over
        the student's); and `per_head`: name → nested list `[2][L][H]`, keys first.

        Heads whose student vectors do not vary over the tokens of either split have nothing to be predicted: they are
        None in every metric of `per_head` and left out of the means, which are None if no head varies.
    """
    fit = _Fit()
    for batch in training_slice:
        fit.add(predict(batch))
    student_mean, projected_mean, scale = fit.result()
    spread = _HeadStatistics()
    sums: dict[str, Tensor | float] = {}
    for batch in held_out:
        pair = predict(batch)
        spread.add(pair.student, pair.mask)
        mask = pair.mask[:, None, None, :].float()
        for name, value in _scores(pair, student_mean, projected_mean, scale).items():
            sums[name] = sums.get(name, 0.0) + (value * mask).double().sum((1, 4))
    total = {name: torch.as_tensor(value) for name, value in sums.items()}
    scores = {name: total[name] / spread.tokens for name in NAMES if name in total}
    scores["r2"] = 1.0 - total["error"] / total["variance"]
    scores["mag_ratio"] = total["norm_p"] / total["norm_s"]
    varies = fit.student.varies & spread.varies
    means = {name: float(scores[name][varies].mean()) if varies.any() else None for name in NAMES}
    return means | {"per_head": {name: nested(scores[name], varies) for name in NAMES}}


def nested(values: Tensor, defined: Tensor) -> list[Any]:
    """A tensor as nested lists, None where `defined` (of the same shape) is false."""
    if values.dim() == 1:
        return [value if known else None for value, known in zip(values.tolist(), defined.tolist(), strict=True)]
    return [nested(row, known) for row, known in zip(values, defined, strict=True)]


class _HeadStatistics(ChannelStatistics):
    """What the heads' vectors vary by, about their mean."""

    @property
    def centred_square(self) -> Tensor:
        """Sum of squares about the mean, `[2, L, H]`."""
        mean, square = self.moments
        return self.tokens * (square - mean.square()).sum(-1)

    @property
    def varies(self) -> Tensor:
        """True for heads whose vectors vary by more than rounding, `[2, L, H]`."""
        return self.centred_square > ROUNDING * self.tokens * self.moments[1].sum(-1)


class _Fit:
    """Means of both sides, and the scale per layer and head that maps the projection onto the student."""

    def __init__(self) -> None:
        self.student, self.projected = _HeadStatistics(), _HeadStatistics()
        self.cross: Tensor | float = 0.0

    def add(self, pair: Pair) -> None:
        self.student.add(pair.student, pair.mask)
        self.projected.add(pair.projected, pair.mask)
        s, p = torch.stack(pair.student).double(), torch.stack(pair.projected).double()
        self.cross = self.cross + (s * p * pair.mask[:, None, None, :, None]).sum((1, 4, 5))

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        student, projected = self.student, self.projected
        cross = self.cross - student.tokens * (student.moments[0] * projected.moments[0]).sum(-1)
        # A constant projection explains nothing: scale 0, not a quotient of rounding errors.
        scale = torch.where(projected.varies, cross / projected.centred_square, 0.0)
        return student.mean, projected.mean, scale.float()[..., None, None]


def _scores(pair: Pair, student_mean: Tensor, projected_mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Per token, each `[2, B, L, H, T]`."""
    s, p = torch.stack(pair.student).float(), torch.stack(pair.projected).float()
    mean = student_mean[:, None].expand_as(s)
    centred_s, centred_p = s - mean, p - projected_mean[:, None]
    centred = cosine(centred_s, centred_p)
    return {
        "cos_sim": cosine(s, p),
        "cos_sim_centered": centred,
        "cos_sim_constant": cosine(s, mean),
        "angular_distance": centred.clamp(-1, 1).acos() / math.pi,
        "alignment_accuracy": (centred > ALIGNED).float(),
        "error": (centred_s - scale[:, None] * centred_p).square().sum(-1),
        "variance": centred_s.square().sum(-1),
        "norm_p": centred_p.norm(dim=-1),
        "norm_s": centred_s.norm(dim=-1),
        "retrieval_at_1": _retrieval(centred_s, centred_p, pair.ids, pair.mask),
    }


def _retrieval(student: Tensor, projected: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """1 where the nearest student vector by cosine belongs to a token with the same id."""
    unit_s, unit_p = (torch.nn.functional.normalize(x, dim=-1) for x in (student, projected))
    hits = []
    for tensor_s, tensor_p in zip(unit_s, unit_p, strict=True):  # keys, then values: [B, L, H, T, T] at a time
        similarity = tensor_p @ tensor_s.mT
        similarity = similarity.masked_fill(~mask_BT.bool()[:, None, None, None, :], -2.0)
        nearest = similarity.argmax(-1)
        found = ids_BT[:, None, None, :].expand_as(nearest).gather(-1, nearest)
        hits.append((found == ids_BT[:, None, None, :]).float())
    return torch.stack(hits)

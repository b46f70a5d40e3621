"""Alignment metrics that a constant prediction cannot fool, on held-out examples.

Keys carry large constant biases, so predicting their mean already scores a raw cosine near 1. Every metric here is
therefore reported beside that floor, or measured after the channel means of the training slice are removed.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kava.align.projector import ChannelStatistics
from kava.cache.capture import KeysValues
from kava.losses.masking import cosine

NAMES = ("cos_sim", "cos_sim_centered", "cos_sim_constant", "r2", "retrieval_at_1", "mag_ratio")


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
        student's mean); `r2` (share of the student's variance explained, after one scale per layer and head);
        `retrieval_at_1` (share of tokens whose centred projection is nearest, among the tokens of its example, to
        a student vector of a token with the same id); `mag_ratio` (mean centred norm over the student's); and
        `per_head`: name → nested list `[2][L][H]`, keys first.
    """
    fit = _Fit()
    for batch in training_slice:
        fit.add(predict(batch))
    student_mean, projected_mean, scale = fit.result()
    sums: dict[str, Tensor | float] = dict.fromkeys(
        ("cos_sim", "cos_sim_centered", "cos_sim_constant", "retrieval_at_1", "error", "variance", "norm_p", "norm_s"),
        0.0,
    )
    tokens = 0
    for batch in held_out:
        pair = predict(batch)
        mask = pair.mask[:, None, None, :].float()
        for name, value in _scores(pair, student_mean, projected_mean, scale).items():
            sums[name] = sums[name] + (value * mask).double().sum((1, 4))
        tokens += int(pair.mask.sum())
    total = {name: torch.as_tensor(value) for name, value in sums.items()}
    per_head = {name: total[name] / tokens for name in NAMES if name in total}
    per_head["r2"] = 1.0 - total["error"] / total["variance"]
    per_head["mag_ratio"] = total["norm_p"] / total["norm_s"]
    return {name: float(per_head[name].mean()) for name in NAMES} | {
        "per_head": {name: per_head[name].tolist() for name in NAMES}
    }


def warnings_for(metrics: dict[str, Any]) -> list[str]:
    """Sentences for the log and the report when a projection has collapsed or lost its scale."""
    found = []
    if metrics["cos_sim"] > 0.9 and metrics["r2"] < 0.05:
        found.append(
            f"collapse: raw cosine {metrics['cos_sim']:.3f} with r2 {metrics['r2']:.3f}; predicting a constant scores "
            f"{metrics['cos_sim_constant']:.3f}"
        )
    if not 0.1 <= metrics["mag_ratio"] <= 10:
        found.append(f"magnitude ratio {metrics['mag_ratio']:.3g} is outside 0.1 to 10")
    return found


class _Fit:
    """Means of both sides, and the scale per layer and head that maps the projection onto the student."""

    def __init__(self) -> None:
        self.student, self.projected = ChannelStatistics(), ChannelStatistics()
        self.cross: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def add(self, pair: Pair) -> None:
        self.student.add(pair.student, pair.mask)
        self.projected.add(pair.projected, pair.mask)
        s, p = torch.stack(pair.student).double(), torch.stack(pair.projected).double()
        p = p * pair.mask[:, None, None, :, None]
        self.cross = self.cross + (s * p).sum((1, 4, 5))
        self.square = self.square + (p * p).sum((1, 4, 5))

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        mean_s, mean_p, n = self.student.mean, self.projected.mean, self.student.tokens
        cross = self.cross - n * (mean_s.double() * mean_p.double()).sum((-1, -2))
        square = self.square - n * mean_p.double().square().sum((-1, -2))
        # A constant projection explains nothing: scale 0, not a quotient of rounding errors.
        scale = torch.where(square > 1e-9 * torch.as_tensor(self.square), cross / square, 0.0)
        return mean_s, mean_p, scale.float()[..., None, None]


def _scores(pair: Pair, student_mean: Tensor, projected_mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Per token, each `[2, B, L, H, T]`."""
    s, p = torch.stack(pair.student).float(), torch.stack(pair.projected).float()
    mean = student_mean[:, None].expand_as(s)
    centred_s, centred_p = s - mean, p - projected_mean[:, None]
    return {
        "cos_sim": cosine(s, p),
        "cos_sim_centered": cosine(centred_s, centred_p),
        "cos_sim_constant": cosine(s, mean),
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

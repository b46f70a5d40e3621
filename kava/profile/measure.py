"""The numbers of a profile: norms, biases and spread of each side, and how the two sides relate.

Shape suffixes: N tokens, L layers, H KV heads, D head dim, P and Q features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kava.cka import cka_matrix
from kava.errors import UserError
from kava.kv import KeysValues, ratio_map
from kava.losses.masking import cosine
from kava.metrics import ROUNDING, nested
from kava.profile.probe import Halves, LinearProbe, Prediction

# The smallest number of examples of which both folds of the fitted half and the scored half have one.
FEWEST_EXAMPLES = 4


class Sample(NamedTuple):
    """KV of the same tokens in both models, `[N, L, H, D]` each, and the example `[N]` that each token is of."""

    teacher: KeysValues
    student: KeysValues
    example: Tensor


def measure(sample: Sample) -> dict[str, Any]:
    """Profile a pair of models.

    Examples take turns: the even ones are fitted (means, linear maps), the odd ones scored.

    Returns
    -------
    dict
        `tokens`: `{"fitted", "scored"}`; `teacher` and `student`: `keys` and `values` → what `describe` returns;
        `pair`: `keys` and `values` → `cka` `[L_s][L_t]`, `cos_sim_constant` `[L_s][H_s]`, `ratio_layer` `[L_s]` and
        the linear probes `one_layer` (from that layer of the teacher) and `all_layers`, of which each holds `r2`,
        `cos_sim` and `cos_sim_centered` of the scored half and `fold_r2` within the fitted half, each `[L_s][H_s]`,
        None for heads that do not vary.

    Raises
    ------
    UserError
        Fewer than 4 examples.
    """
    examples = len(sample.example.unique())
    if examples < FEWEST_EXAMPLES:
        raise UserError(f"a profile needs at least {FEWEST_EXAMPLES} examples, got {examples}; give more --tokens")
    halves = Halves.by_example(sample.example)
    report: dict[str, Any] = {
        "tokens": {"fitted": len(halves.fit), "scored": len(halves.score)},
        "teacher": {},
        "student": {},
        "pair": {},
    }
    for name, teacher, student in zip(KeysValues._fields, sample.teacher, sample.student, strict=True):
        report["teacher"][name] = describe(teacher)
        report["student"][name] = describe(student)
        report["pair"][name] = relate(teacher, student, halves)
    return report


def describe(x_NLHD: Tensor) -> dict[str, Any]:
    """How one model's keys or values lie.

    Returns
    -------
    dict
        Per layer and head: `norm` (mean Euclidean norm), `bias_share` (squared norm of the mean vector over the mean
        squared norm, 0 to 1), `largest_channel` (index of the channel with the largest mean) and
        `largest_channel_share` (its part of `bias_share`). Per layer: `effective_rank` of all heads together. None
        where every vector is zero, or none varies.
    """
    layers = [_describe_layer(layer.double()) for layer in x_NLHD.unbind(1)]
    return {name: [layer[name] for layer in layers] for name in layers[0]}


def _describe_layer(x_NHD: Tensor) -> dict[str, Any]:
    energy = x_NHD.square().sum(-1).mean(0)
    bias = x_NHD.mean(0).square()
    largest = bias.max(-1)
    return {
        "norm": x_NHD.norm(dim=-1).mean(0).tolist(),
        "bias_share": nested(bias.sum(-1) / energy, energy > 0),
        "largest_channel": nested(largest.indices, energy > 0),
        "largest_channel_share": nested(largest.values / energy, energy > 0),
        "effective_rank": effective_rank(x_NHD.flatten(1)),
    }


def effective_rank(x_NP: Tensor) -> float | None:
    """exp of the entropy of the normalised eigenvalues of the covariance; None if nothing varies.

    Roy & Vetterli, "The effective rank" (EUSIPCO 2007), of variances in place of singular values: P for P uncorrelated
    features of equal variance, 1 for a line.
    """
    centred = x_NP.double() - x_NP.double().mean(0)
    if centred.square().sum() <= ROUNDING * x_NP.double().square().sum():
        return None
    variances = torch.linalg.eigvalsh(centred.mT @ centred).clamp(min=0)
    share = variances / variances.sum()
    return float(torch.special.entr(share).sum().exp())


def relate(teacher_NLHD: Tensor, student_NLHD: Tensor, halves: Halves) -> dict[str, Any]:
    """How a student's keys or values relate to the teacher's; see `measure`."""
    teacher, student = (x.double().transpose(0, 1) for x in (teacher_NLHD, student_NLHD))  # [L, N, H, D]
    features = teacher.flatten(2)
    nearest = ratio_map(len(teacher), len(student))
    single = {layer: LinearProbe(features[layer], halves) for layer in set(nearest)}
    everything = LinearProbe(teacher_NLHD.double().flatten(1), halves)
    # All student layers at once, as if they were heads: a few large products instead of many small ones.
    from_all = everything.predict(student.transpose(0, 1).flatten(1, 2))
    sizes = student_NLHD.shape[1:3]
    by_layer = zip(from_all.scored.unflatten(1, sizes).unbind(1), from_all.fold_r2.unflatten(0, sizes), strict=True)
    return {
        "cka": cka_matrix(student.flatten(2), features).tolist(),
        "cos_sim_constant": [constant_floor(layer, halves).tolist() for layer in student],
        "ratio_layer": nearest,
        "one_layer": _scores(
            [single[i].predict(layer) for i, layer in zip(nearest, student, strict=True)], student, halves
        ),
        "all_layers": _scores([Prediction(*layer) for layer in by_layer], student, halves),
    }


def constant_floor(x_NHD: Tensor, halves: Halves) -> Tensor:
    """Mean cosine `[H]` of the scored tokens with the mean of the fitted ones: what a constant prediction gets."""
    return cosine(x_NHD[halves.score], x_NHD[halves.fit].mean(0)).mean(0)


def _scores(predicted: Sequence[Prediction], student_LNHD: Tensor, halves: Halves) -> dict[str, list[Any]]:
    layers = [score(of_layer, target, halves) for of_layer, target in zip(predicted, student_LNHD, strict=True)]
    return {name: [layer[name] for layer in layers] for name in layers[0]}


def score(predicted: Prediction, target_NHD: Tensor, halves: Halves) -> dict[str, list[Any]]:
    """`r2`, `cos_sim` and `cos_sim_centered` per head of the scored tokens, and `fold_r2`; None if none varies."""
    fitted, scored = target_NHD[halves.fit], target_NHD[halves.score]
    mean = fitted.mean(0)
    known = _varies(fitted) & _varies(scored)
    error, variance = ((scored - x).square().sum((0, 2)) for x in (predicted.scored, mean))
    return {
        "r2": nested(1 - error / variance, known),
        "cos_sim": nested(cosine(scored, predicted.scored).mean(0), known),
        "cos_sim_centered": nested(cosine(scored - mean, predicted.scored - mean).mean(0), known),
        "fold_r2": nested(predicted.fold_r2, known & predicted.fold_r2.isfinite()),
    }


def _varies(x_NHD: Tensor) -> Tensor:
    """True for heads whose vectors vary by more than rounding, as in the alignment metrics."""
    return (x_NHD - x_NHD.mean(0)).square().sum((0, 2)) > ROUNDING * x_NHD.square().sum((0, 2))

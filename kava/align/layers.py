"""Layer maps: which teacher layers each student layer reads, as weights `[L_s, L_t]` whose rows sum to 1."""

from typing import Any

import torch
from torch import Tensor

from kava.config.arms import Aligner, CkaMap, IdentityAligner, KeptMap, LayerMap, ListMap, StructuredAligner
from kava.errors import UserError
from kava.kv import ratio_map
from kava.models.cut import KEY, kept_layers

# Kinds with which each student layer reads one teacher layer.
ONE_HOT = ("ratio", "skip", "list")


def settle(aligner: Aligner, config: Any) -> Aligner:
    """An aligner whose layer map `kept` is the list of layers that a student's configuration names.

    Raises
    ------
    UserError
        It names none.
    """
    if not isinstance(aligner, StructuredAligner | IdentityAligner) or not isinstance(aligner.layer_map, KeptMap):
        return aligner
    kept = kept_layers(config)
    if kept is None:
        raise UserError(
            f"layer_map: {{kind: kept}} reads which layers of the teacher a student has kept, and its config.json has "
            f"no {KEY}; cut the student from the teacher with student.keep_layers, or name the layers yourself with "
            f"layer_map: {{kind: list, layers: [...]}}, {config.num_hidden_layers} of them (all of a student that is "
            "the teacher itself)"
        )
    return aligner.model_copy(update={"layer_map": ListMap(layers=kept)})


def layer_weights(settings: LayerMap, teacher_layers: int, student_layers: int) -> Tensor:
    """Weights of a layer map at the start of training.

    Parameters
    ----------
    settings
        Of the layer map; `cka` starts as `ratio`, until the similarity is known.
    teacher_layers, student_layers
        L_t and L_s.

    Returns
    -------
    Tensor
        `[L_s, L_t]`, float32; rows sum to 1.

    Raises
    ------
    UserError
        `cka` with `top_k` above L_t; `list` that is not of these layers.
    """
    assert not isinstance(settings, KeptMap), "`settle` says which layers were kept"
    if isinstance(settings, ListMap):
        return torch.eye(teacher_layers)[list_map(settings.layers, teacher_layers, student_layers)]
    if settings.kind == "uniform":
        return block_means(teacher_layers, student_layers)
    if isinstance(settings, CkaMap):
        _check_top_k(settings.top_k, teacher_layers)
    choose = skip_map if settings.kind == "skip" else ratio_map
    return torch.eye(teacher_layers)[choose(teacher_layers, student_layers)]


def skip_map(teacher_layers: int, student_layers: int) -> list[int]:
    """`skip`: every n-th teacher layer, counted back from the last, n = max(1, L_t // L_s), and none below layer 0."""
    step = max(1, teacher_layers // student_layers)
    return [max(0, teacher_layers - 1 - i * step) for i in reversed(range(student_layers))]


def list_map(layers: list[int], teacher_layers: int, student_layers: int) -> list[int]:
    """`list`: the layers as they are; `UserError` unless there is one of the teacher's for each of the student's."""
    if len(layers) != student_layers:
        raise UserError(
            f"layer_map.layers names {len(layers)} teacher layers, and the student has {student_layers} layers; name "
            "one for each"
        )
    if max(layers) >= teacher_layers:
        raise UserError(
            f"layer_map.layers names the teacher's layer {max(layers)}, and it has {teacher_layers}, from 0 to "
            f"{teacher_layers - 1}"
        )
    return layers


def cka_map(cka_ST: Tensor, top_k: int) -> Tensor:
    """`cka`: each student layer reads the `top_k` teacher layers most like it, weighted by their CKA.

    Parameters
    ----------
    cka_ST
        CKA of student layers with teacher layers, `[L_s, L_t]`. Of equals the lower teacher layer comes first.
    top_k
        Teacher layers that a student layer reads, up to L_t.

    Returns
    -------
    Tensor
        `[L_s, L_t]` in the dtype of `cka_ST`; rows sum to 1. Weights are in the ratio of the CKA, none where it is
        negative, and equal where none of the chosen layers is positive.

    Raises
    ------
    UserError
        `top_k` above L_t.
    """
    _check_top_k(top_k, cka_ST.shape[1])
    assert cka_ST.isfinite().all(), "CKA is not finite: keys or values of the calibration batches hold NaN or infinity"
    best = cka_ST.sort(dim=1, descending=True, stable=True)
    similarity, layer = best.values[:, :top_k].clamp(min=0), best.indices[:, :top_k]
    alike = (similarity > 0).any(1, keepdim=True)
    weights = torch.where(alike, similarity, 1.0)
    return torch.zeros_like(cka_ST).scatter(1, layer, weights / weights.sum(1, keepdim=True))


def block_means(sources: int, targets: int) -> Tensor:
    """Sources spread evenly over targets, `[targets, sources]`, for layers as for heads.

    Target i is the mean over the block [i, i + 1) · sources / targets, of which the first and the last source may
    belong in part. Rows sum to 1; equal counts give the identity.
    """
    length = sources / targets
    start = torch.arange(targets, dtype=torch.float64)[:, None] * length
    source = torch.arange(sources, dtype=torch.float64)
    overlap = torch.minimum(start + length, source + 1) - torch.maximum(start, source)
    return (overlap.clamp(min=0) / length).float()


def _check_top_k(top_k: int, teacher_layers: int) -> None:
    if top_k > teacher_layers:
        raise UserError(
            f"layer_map.top_k is {top_k} and the teacher has {teacher_layers} layers; set it to 1 to {teacher_layers}"
        )

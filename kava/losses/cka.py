"""`cka`: how alike the tokens of a batch lie to each other in student and teacher, without an aligner."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kava.cka import linear_cka
from kava.kv import KeysValues, ratio_map
from kava.losses.auxiliary import Auxiliary, StudentPass
from kava.losses.masking import widen


class Cka(Auxiliary):
    """Of keys and of values, each student layer with the teacher's at the ratio of depth.

    A ratio of sums over a batch, which does depend on the batch.
    """

    name = "cka"
    reads = ("kv",)
    mean_over = "covered"

    def forward(self, student: StudentPass, batch: Mapping[str, Tensor]) -> Tensor:
        teacher = KeysValues(batch["teacher_keys"], batch["teacher_values"])
        layers = ratio_map(teacher.keys.shape[1], student.kv.keys.shape[1])
        both = [cka_loss(s, t[:, layers], batch["kv_mask"]) for s, t in zip(student.kv, teacher, strict=True)]
        return (both[0] + both[1]) / 2


def cka_loss(student_BLHTD: Tensor, teacher_BLHTD: Tensor, mask_BT: Tensor) -> Tensor:
    """1 − mean over layers of the debiased linear CKA between the features of the batch's tokens, a scalar.

    Parameters
    ----------
    student_BLHTD, teacher_BLHTD
        Keys or values of as many layers; heads and dims, side by side the features, may differ.
    mask_BT
        Non-zero for the tokens that are compared, at least 4 in all.
    """
    mask = mask_BT > 0
    assert student_BLHTD.shape[1] == teacher_BLHTD.shape[1], "CKA compares layer by layer: map the teacher's first"
    assert int(mask.sum()) >= 4, f"debiased CKA needs at least 4 tokens, the batch has {int(mask.sum())}"
    pairs = zip(student_BLHTD.unbind(1), teacher_BLHTD.unbind(1), strict=True)
    with torch.autocast(student_BLHTD.device.type, enabled=False):
        similarity = [linear_cka(_features(s, mask), _features(t, mask)) for s, t in pairs]
    return 1.0 - torch.stack(similarity).mean()


def _features(tensor_BHTD: Tensor, mask_BT: Tensor) -> Tensor:
    return widen(tensor_BHTD.transpose(1, 2).flatten(2)[mask_BT])

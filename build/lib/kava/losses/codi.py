"""`codi`: hidden states of all layers at one token, the last before the answer."""

import torch
from torch import Tensor, nn

from kava.losses.masking import SMALLEST_STD, widen


def codi(student_BLW: Tensor, teacher_BLW: Tensor) -> Tensor:
    """Smooth L1 (threshold 1) over the standard deviation of the teacher's layer, mean over layers, a scalar.

    CODI (arXiv 2502.21074), whose implementation divides the loss by the standard deviation, not the states.

    Parameters
    ----------
    student_BLW, teacher_BLW
        Hidden states of the token, `[batch, layers, width]`; the teacher's brought to the student's layers and width.
        No gradient passes through the standard deviation, which is taken over batch and width.
    """
    student, teacher = widen(student_BLW), widen(teacher_BLW)
    std_L = teacher.detach().std((0, 2), correction=0).clamp(min=SMALLEST_STD)
    distance_L = nn.functional.smooth_l1_loss(student, teacher, reduction="none").mean((0, 2))
    return torch.mean(distance_L / std_L)

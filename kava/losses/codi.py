"""`codi`: hidden states of all layers at one token, the last before the answer."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kava.config.auxiliary import AuxiliaryLoss
from kava.kv import ratio_map
from kava.losses.auxiliary import Auxiliary, BothModels, StudentPass
from kava.losses.masking import SMALLEST_STD, widen


class Codi(Auxiliary):
    """Each student layer with the teacher's at the ratio of depth; a projection is learnt where widths differ.

    Its unit is the standard deviation within a batch, and does depend on the batch.
    """

    name = "codi"
    reads = ("hidden_states",)
    mean_over = "examples"
    all_layers = True

    def __init__(self, settings: AuxiliaryLoss, models: BothModels) -> None:
        super().__init__(settings, models)
        self.projection: nn.Module = nn.Identity()
        if models.teacher_width != models.student_width:
            assert models.teacher_width is not None, "codi needs the width of the teacher's hidden states"
            self.projection = nn.Linear(models.teacher_width, models.student_width, bias=False)

    def forward(self, student: StudentPass, batch: Mapping[str, Tensor]) -> Tensor:
        last = student.answer.int().argmax(1) - 1  # the token before the answer
        assert bool((last >= 0).all()), "an example begins with its answer"
        rows = range(len(last))
        own = [of_layer[rows, last] for of_layer in student.hidden]
        teacher_BLW = batch["teacher_hidden"]
        chosen = ratio_map(teacher_BLW.shape[1], len(own))
        return codi(torch.stack(own, 1), self.projection(teacher_BLW[:, chosen].to(own[0].dtype)))


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

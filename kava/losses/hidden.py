"""`hidden`: hidden states of every token, each student layer with the teacher layer that it was, or is as deep as."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kava.config.arms import Arm
from kava.config.auxiliary import AuxiliaryLoss, HiddenLoss
from kava.errors import UserError
from kava.kv import ratio_map
from kava.losses.auxiliary import Auxiliary, BothModels, StudentPass
from kava.losses.structural import structural
from kava.models.cut import kept_layers


class Hidden(Auxiliary):
    """What each block gives, before the final norm on both sides; a projection is learnt where widths differ.

    Attributes
    ----------
    student_mean, teacher_mean
        Channel means of the base student and of the teacher, `[L_s, W_s]` and `[L_s, W_t]`, which `center` removes.
    """

    name = "hidden"
    reads = ("token_hidden_states",)
    mean_over = "tokens"
    blocks = True
    student_mean: Tensor
    teacher_mean: Tensor

    def __init__(self, settings: AuxiliaryLoss, models: BothModels) -> None:
        super().__init__(settings, models)
        assert isinstance(settings, HiddenLoss)
        assert settings.layers is not None, "`with_layers` says which"
        assert models.teacher_width is not None, "hidden needs the width of the teacher's hidden states"
        self.center = settings.center
        self.register_buffer("student_mean", torch.zeros(len(settings.layers), models.student_width), persistent=False)
        self.register_buffer("teacher_mean", torch.zeros(len(settings.layers), models.teacher_width), persistent=False)
        self.projection: nn.Module = nn.Identity()
        if models.teacher_width != models.student_width:
            self.projection = nn.Linear(models.teacher_width, models.student_width, bias=False)

    def forward(self, student: StudentPass, batch: Mapping[str, Tensor]) -> Tensor:
        own, theirs = list(student.blocks), list(batch["teacher_token_hidden"].unbind(1))
        if self.center:
            own = [states - mean for states, mean in zip(own, self.student_mean, strict=True)]
            theirs = [states - mean for states, mean in zip(theirs, self.teacher_mean, strict=True)]
        projected = [self.projection(states.to(self.student_mean.dtype)) for states in theirs]
        return hidden_distance(own, projected, batch["attention_mask"])


def hidden_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], mask_BT: Tensor) -> Tensor:
    """1 − mean cosine over layers and tokens, a scalar.

    Parameters
    ----------
    student, teacher
        Hidden states `[B, T, W]` of as many layers, one after the other: side by side all of them would be held twice.
    mask_BT
        1 for the tokens that count.
    """
    of_layers = [
        structural(own[:, None, None], theirs[:, None, None], mask_BT)
        for own, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(of_layers).mean()


def with_layers(arm: Arm, student: Any, teacher_layers: int, stored: Sequence[int]) -> Arm:
    """The arm with the teacher layer of each student layer, which `layers: null` leaves to the student.

    Parameters
    ----------
    arm
        As it was configured.
    student
        Configuration of the student, of `transformers`.
    teacher_layers
        How many the teacher has.
    stored
        Layers behind which the store has hidden states.

    Raises
    ------
    UserError
        There is not one stored layer for each of the student's.
    """
    if (settings := arm.auxiliary.hidden) is None:
        return arm
    own = student.num_hidden_layers
    layers = settings.layers or kept_layers(student) or ratio_map(teacher_layers, own)
    if len(layers) != own:
        raise UserError(
            f"auxiliary.hidden compares {len(layers)} teacher layers {layers} with a student of {own}; name one for "
            "each in auxiliary.hidden.layers"
        )
    if missing := sorted({*layers} - {*stored}):
        raise UserError(
            f"auxiliary.hidden compares the student's layers with the teacher's {layers}, and the store has no hidden "
            f"states of {missing}; set kv.signals.token_hidden_states: {sorted({*layers, *stored})} and extract again"
        )
    hidden = settings.model_copy(update={"layers": list(layers)})
    return arm.model_copy(update={"auxiliary": arm.auxiliary.model_copy(update={"hidden": hidden})})

"""`identity`: the teacher's KV as it is, for a student that was cut from it."""

import torch
from torch import Tensor

from kava.align.base import Aligner, require_one_geometry
from kava.align.layers import layer_weights
from kava.config.arms import IdentityAligner
from kava.kv import Geometry


class Identity(Aligner[IdentityAligner]):
    """Each student layer reads one teacher layer, head by head and dim by dim.

    Raises
    ------
    UserError
        Head dims or the number of KV heads differ.
    """

    kind = "identity"
    layer_index: Tensor
    mean: Tensor

    def __init__(self, settings: IdentityAligner, teacher: Geometry, student: Geometry) -> None:
        super().__init__(settings, teacher, student)
        require_one_geometry("aligner identity", teacher, student)
        weights = layer_weights(settings.layer_map, teacher.layers, student.layers)
        self.register_buffer("layer_index", weights.argmax(1), persistent=False)
        self.register_buffer("mean", torch.zeros(student.layers, student.kv_heads, 1, student.head_dim))

    @property
    def shares_coordinates(self) -> bool:
        return True

    def set_teacher_mean(self, mean_LHTD: Tensor) -> None:
        self.mean.copy_(mean_LHTD[self.layer_index])

    def forward(self, teacher_BLHTD: Tensor) -> Tensor:
        return teacher_BLHTD[:, self.layer_index] + self.mean

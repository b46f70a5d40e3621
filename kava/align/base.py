"""The contract of every aligner."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from kava.cache.capture import Geometry


class Aligner(nn.Module, ABC):
    """Map of teacher keys (or values, with other weights) to the student's geometry.

    Parameters
    ----------
    teacher, student
        KV geometries on either side.
    """

    kind: ClassVar[str]

    def __init__(self, teacher: Geometry, student: Geometry) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = student

    def set_layer_similarity(self, cka_ST: Tensor) -> None:
        """Take the CKA of student layers with teacher layers, `[L_s, L_t]`; only a layer map `cka` listens."""
        del cka_ST

    @abstractmethod
    def forward(self, teacher_BLHTD: Tensor) -> Tensor:
        """Standardised teacher tensor `[B, L_t, H_t, T, D_t]` → `[B, L_s, H_s, T, D_s]`."""

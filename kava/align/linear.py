"""`linear`: one linear map over all layers and heads at once, the weak baseline."""

from torch import Tensor, nn

from kava.align.base import SolvedChannels, from_channels, to_channels
from kava.config.arms import LinearAligner
from kava.kv import Geometry


class Linear(SolvedChannels[LinearAligner]):
    """Linear(C_t, C_s) per token; C is layers × heads × head dim."""

    kind = "linear"

    def __init__(self, settings: LinearAligner, teacher: Geometry, student: Geometry) -> None:
        super().__init__(settings, teacher, student)
        self.map = nn.Linear(teacher.channels, student.channels)

    def forward(self, teacher_BLHTD: Tensor) -> Tensor:
        return from_channels(self.map(to_channels(teacher_BLHTD)), self.student)

    def features(self, teacher_BLHTD: Tensor) -> Tensor:
        return to_channels(teacher_BLHTD).unsqueeze(0)

    @property
    def last(self) -> nn.Linear:
        return self.map

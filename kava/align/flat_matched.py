"""`flat_matched`: flat with as many parameters as a structured aligner, so that the two differ in structure alone."""

from typing import cast

from torch import Tensor, nn

from kava.align.base import SolvedChannels, from_channels, to_channels
from kava.config.arms import FlatMatchedAligner, StructuredAligner
from kava.kv import Geometry


class FlatMatched(SolvedChannels[FlatMatchedAligner]):
    """LayerNorm without affine → Linear(C_t, r) → SiLU → Dropout → Linear(r, C_s), per token.

    Attributes
    ----------
    rank
        r, the integer from 1 up with which the number of parameters is nearest to that aligner's.
    """

    kind = "flat_matched"

    def __init__(self, settings: FlatMatchedAligner, teacher: Geometry, student: Geometry) -> None:
        super().__init__(settings, teacher, student)
        target = structured_parameters(settings.match, teacher, student)
        per_rank = teacher.channels + 1 + student.channels
        self.rank = max(1, round((target - student.channels) / per_rank))
        self.layers = nn.Sequential(
            nn.LayerNorm(teacher.channels, elementwise_affine=False),
            nn.Linear(teacher.channels, self.rank),
            nn.SiLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(self.rank, student.channels),
        )

    def forward(self, teacher_BLHTD: Tensor) -> Tensor:
        return from_channels(self.layers(to_channels(teacher_BLHTD)), self.student)

    def features(self, teacher_BLHTD: Tensor) -> Tensor:
        hidden: Tensor = self.layers[:-1](to_channels(teacher_BLHTD))
        return hidden.unsqueeze(0)

    @property
    def last(self) -> nn.Linear:
        return cast(nn.Linear, self.layers[-1])


def structured_parameters(settings: StructuredAligner, teacher: Geometry, student: Geometry) -> int:
    """Number of parameters of the structured aligner with these settings."""
    layers, heads, dim = student.layers, student.kv_heads, student.head_dim
    projections = (layers if settings.per_layer else 1) * (heads if settings.per_head else 1)
    return layers * heads * teacher.kv_heads + projections * dim * teacher.head_dim + layers * heads * dim

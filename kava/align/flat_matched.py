"""`flat_matched`: flat with as many parameters as a structured aligner, so that the two differ in structure alone."""

from typing import Any

from torch import Tensor, nn

from kava.align.base import Aligner, from_channels, to_channels
from kava.kv import Geometry


class FlatMatched(Aligner):
    """LayerNorm without affine → Linear(C_t, r) → SiLU → Dropout → Linear(r, C_s), per token.

    Parameters
    ----------
    dropout
        Probability of dropping a hidden unit.
    match
        Settings of the structured aligner whose parameters are counted.

    Attributes
    ----------
    rank
        r, the integer from 1 up with which the number of parameters is nearest to that aligner's.
    """

    kind = "flat_matched"

    def __init__(self, teacher: Geometry, student: Geometry, dropout: float, match: dict[str, Any]) -> None:
        super().__init__(teacher, student)
        target = structured_parameters(match, teacher, student)
        per_rank = teacher.channels + 1 + student.channels
        self.rank = max(1, round((target - student.channels) / per_rank))
        self.layers = nn.Sequential(
            nn.LayerNorm(teacher.channels, elementwise_affine=False),
            nn.Linear(teacher.channels, self.rank),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(self.rank, student.channels),
        )

    def forward(self, teacher_BLHTD: Tensor) -> Tensor:
        return from_channels(self.layers(to_channels(teacher_BLHTD)), self.student)


def structured_parameters(settings: dict[str, Any], teacher: Geometry, student: Geometry) -> int:
    """Number of parameters of the structured aligner with these settings `{kind: structured, …}`."""
    layers, heads, dim = student.layers, student.kv_heads, student.head_dim
    projections = (layers if settings["per_layer"] else 1) * (heads if settings["per_head"] else 1)
    return layers * heads * teacher.kv_heads + projections * dim * teacher.head_dim + layers * heads * dim

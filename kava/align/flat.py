"""`flat`: the elastic bottleneck over all layers and heads at once."""

from torch import Tensor, nn

from kava.align.base import Aligner
from kava.cache.capture import Geometry


class Flat(Aligner):
    """LayerNorm → Linear(C_t, C_t · mlp_ratio) → SiLU → Dropout → Linear(·, C_s), per token.

    C is layers × heads × head dim. What a channel means, its layer and its head, is given up.

    Parameters
    ----------
    mlp_ratio
        Hidden width over input width.
    dropout
        Probability of dropping a hidden unit.
    """

    kind = "flat"

    def __init__(self, teacher: Geometry, student: Geometry, mlp_ratio: float, dropout: float) -> None:
        super().__init__(teacher, student)
        hidden = max(1, round(teacher.channels * mlp_ratio))
        self.layers = nn.Sequential(
            nn.LayerNorm(teacher.channels),
            nn.Linear(teacher.channels, hidden),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, student.channels),
        )

    def forward(self, teacher_BLHTD: Tensor) -> Tensor:
        per_token = teacher_BLHTD.permute(0, 3, 1, 2, 4).flatten(2)
        shape = (self.student.layers, self.student.kv_heads, self.student.head_dim)
        return self.layers(per_token).unflatten(-1, shape).permute(0, 2, 3, 1, 4)

"""`flat`: the elastic bottleneck over all layers and heads at once."""

from typing import cast

import torch
from torch import Tensor, nn

from kava.align.base import SolvedChannels, from_channels, to_channels
from kava.config.arms import FlatAligner
from kava.kv import Geometry


class Flat(SolvedChannels[FlatAligner]):
    """LayerNorm → Linear(C_in, C_in · mlp_ratio) → SiLU → Dropout → Linear(·, C_s), per token.

    C_in is layers × heads × head dim, or heads × head dim where the layers are averaged.

    Averages of teacher layers are plain, or by the softmax of learned weights, which start equal; of the last layer
    alone every aggregation is the layer itself.
    """

    kind = "flat"

    def __init__(self, settings: FlatAligner, teacher: Geometry, student: Geometry) -> None:
        super().__init__(settings, teacher, student)
        self.first_layer = teacher.layers - 1 if settings.layers == "last" else 0
        read = teacher.layers - self.first_layer
        # The softmax of one weight is 1 whatever the weight: a parameter that nothing would train.
        self.aggregation = settings.aggregation if read > 1 else "concat"
        if self.aggregation == "weighted":
            self.layer_weights = nn.Parameter(torch.zeros(read))
        width = (read if self.aggregation == "concat" else 1) * teacher.kv_heads * teacher.head_dim
        hidden = max(1, round(width * settings.mlp_ratio))
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(hidden, student.channels),
        )

    def forward(self, teacher_BLHTD: Tensor) -> Tensor:
        return from_channels(self.layers(self._read(teacher_BLHTD)), self.student)

    def features(self, teacher_BLHTD: Tensor) -> Tensor:
        hidden: Tensor = self.layers[:-1](self._read(teacher_BLHTD))
        return hidden.unsqueeze(0)

    @property
    def last(self) -> nn.Linear:
        return cast(nn.Linear, self.layers[-1])

    def _read(self, teacher_BLHTD: Tensor) -> Tensor:
        read = teacher_BLHTD[:, self.first_layer :]
        if self.aggregation == "mean":
            read = read.mean(1, keepdim=True)
        elif self.aggregation == "weighted":
            read = torch.einsum("l,blhtd->bhtd", self.layer_weights.softmax(0), read).unsqueeze(1)
        return to_channels(read)

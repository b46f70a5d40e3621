"""`structured`: the headwise map projection; layers, heads and dims are mapped apart and never flattened."""

from typing import Any

import torch
from torch import Tensor, nn

from kava.align.base import Aligner
from kava.align.layers import ratio_map
from kava.cache.capture import Geometry


class Structured(Aligner):
    """Layer map → head mixer `[H_s, H_t]` → dim projection `[D_s, D_t]` and bias, for each student layer.

    Parameters
    ----------
    layer_map
        Settings of the layer map, `{kind: …}`.
    mixer_init
        `uniform` splits teacher heads evenly over student heads; `random` draws from a normal distribution.
    per_head
        One dim projection per student head; otherwise the heads of a layer share one.
    """

    kind = "structured"
    layer_index: Tensor

    def __init__(
        self, teacher: Geometry, student: Geometry, layer_map: dict[str, Any], mixer_init: str, per_head: bool
    ) -> None:
        super().__init__(teacher, student)
        layers, heads, dim = student.layers, student.kv_heads, student.head_dim
        index = _LAYER_MAPS[layer_map["kind"]](teacher.layers, layers)
        self.register_buffer("layer_index", torch.tensor(index), persistent=False)
        mixer = uniform_mixer(teacher.kv_heads, heads)
        if mixer_init == "random":
            mixer = torch.randn(heads, teacher.kv_heads) / teacher.kv_heads**0.5
        self.mixer = nn.Parameter(mixer.repeat(layers, 1, 1))
        projections = heads if per_head else 1
        self.projection = nn.Parameter(torch.randn(layers, projections, dim, teacher.head_dim) / teacher.head_dim**0.5)
        self.bias = nn.Parameter(torch.zeros(layers, heads, dim))

    def forward(self, teacher_BLHTD: Tensor) -> Tensor:
        mapped = teacher_BLHTD[:, self.layer_index]
        mixed = torch.einsum("lsh,blhtd->blstd", self.mixer, mapped)
        return mixed @ self.projection.mT + self.bias[:, :, None]


def uniform_mixer(teacher_heads: int, student_heads: int) -> Tensor:
    """Teacher heads spread evenly over student heads, `[H_s, H_t]`.

    Student head s takes the stretch [s, s + 1) · H_t / H_s of the teacher's heads. Rows sum to 1; equal counts give
    the identity.
    """
    stretch = teacher_heads / student_heads
    start = torch.arange(student_heads)[:, None] * stretch
    head = torch.arange(teacher_heads)[None]
    overlap = torch.minimum(start + stretch, head + 1.0) - torch.maximum(start, head.float())
    return overlap.clamp(min=0) / stretch


_LAYER_MAPS = {"ratio": ratio_map}

"""`structured`: the headwise map projection; layers, heads and dims are mapped apart and never flattened."""

from typing import Any

import torch
from torch import Tensor, nn

from kava.align.base import Aligner
from kava.align.layers import ONE_HOT, block_means, cka_map, layer_weights
from kava.kv import Geometry


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
    per_layer
        One dim projection (or one per head) for each student layer; otherwise all layers share it. Mixers and biases
        are each layer's own in any case.

    Raises
    ------
    UserError
        A layer map `cka` that reads more layers than the teacher has.
    """

    kind = "structured"
    layer_index: Tensor
    layer_weights: Tensor

    def __init__(
        self,
        teacher: Geometry,
        student: Geometry,
        layer_map: dict[str, Any],
        mixer_init: str,
        per_head: bool,
        per_layer: bool,
    ) -> None:
        super().__init__(teacher, student)
        layers, heads, dim = student.layers, student.kv_heads, student.head_dim
        self.layer_map = layer_map
        weights = layer_weights(layer_map, teacher.layers, layers)
        if layer_map["kind"] in ONE_HOT:
            self.register_buffer("layer_index", weights.argmax(1), persistent=False)
        else:
            # Saved with the projector: weights by CKA cannot be had again from the settings.
            self.register_buffer("layer_weights", weights)
        mixer = block_means(teacher.kv_heads, heads)
        if mixer_init == "random":
            mixer = torch.randn(heads, teacher.kv_heads) / teacher.kv_heads**0.5
        self.mixer = nn.Parameter(mixer.repeat(layers, 1, 1))
        shape = (layers if per_layer else 1, heads if per_head else 1, dim, teacher.head_dim)
        self.projection = nn.Parameter(torch.randn(shape) / teacher.head_dim**0.5)
        self.bias = nn.Parameter(torch.zeros(layers, heads, dim))

    def set_layer_similarity(self, cka_ST: Tensor) -> None:
        if self.layer_map["kind"] == "cka":
            expected = (self.student.layers, self.teacher.layers)
            assert cka_ST.shape == expected, f"CKA has the shape {tuple(cka_ST.shape)}, not [L_s, L_t] = {expected}"
            self.layer_weights.copy_(cka_map(cka_ST, self.layer_map["top_k"]))

    def forward(self, teacher_BLHTD: Tensor) -> Tensor:
        if self.layer_map["kind"] in ONE_HOT:
            mapped = teacher_BLHTD[:, self.layer_index]
        else:
            mapped = torch.einsum("lm,bmhtd->blhtd", self.layer_weights, teacher_BLHTD)
        # Student layers and heads lead, tokens of the batch in one row: the order in which nothing has to be copied.
        mixed = torch.einsum("lsh,blhtd->lsbtd", self.mixer, mapped)
        projected = mixed.flatten(2, 3) @ self.projection.mT + self.bias[:, :, None]
        return projected.unflatten(2, mixed.shape[2:4]).permute(2, 0, 1, 3, 4)

"""`structured`: the headwise map projection; layers, heads and dims are mapped apart and never flattened."""

import torch
from torch import Tensor, nn

from kava.align.base import Solved, require_one_geometry
from kava.align.layers import ONE_HOT, block_means, cka_map, layer_weights
from kava.align.least_squares import NormalEquations, alternating, with_ridge
from kava.config.arms import CkaMap, StructuredAligner
from kava.config.training import ClosedForm
from kava.errors import UserError
from kava.kv import Geometry


class Structured(Solved[StructuredAligner]):
    """Layer map → head mixer `[H_s, H_t]` → dim projection `[D_s, D_t]` and bias, for each student layer.

    Mixers and biases are each layer's own, whichever layers and heads share a projection.

    Raises
    ------
    UserError
        A layer map `cka` that reads more layers than the teacher has; a start at the identity where head dims or the
        number of KV heads differ.
    """

    kind = "structured"
    layer_index: Tensor
    layer_weights: Tensor

    def __init__(self, settings: StructuredAligner, teacher: Geometry, student: Geometry) -> None:
        super().__init__(settings, teacher, student)
        layers, heads, dim = student.layers, student.kv_heads, student.head_dim
        weights = layer_weights(settings.layer_map, teacher.layers, layers)
        if settings.layer_map.kind in ONE_HOT:
            self.register_buffer("layer_index", weights.argmax(1), persistent=False)
        else:
            # Saved with the projector: weights by CKA cannot be had again from the settings.
            self.register_buffer("layer_weights", weights)
        mixer = block_means(teacher.kv_heads, heads)
        if settings.mixer_init == "random":
            mixer = torch.randn(heads, teacher.kv_heads) / teacher.kv_heads**0.5
        self.mixer = nn.Parameter(mixer.repeat(layers, 1, 1))
        shape = (layers if settings.per_layer else 1, heads if settings.per_head else 1, dim, teacher.head_dim)
        projection = torch.randn(shape) / teacher.head_dim**0.5
        if self.shares_coordinates:
            require_one_geometry("dim_init: identity", teacher, student)
            projection = torch.eye(dim).expand(shape).clone()
        self.projection = nn.Parameter(projection)
        self.bias = nn.Parameter(torch.zeros(layers, heads, dim))

    @property
    def shares_coordinates(self) -> bool:
        return self.settings.dim_init == "identity"

    def set_teacher_mean(self, mean_LHTD: Tensor) -> None:
        if self.shares_coordinates:
            with torch.no_grad():
                self.bias.copy_(self(mean_LHTD[None])[0, :, :, 0])

    def set_layer_similarity(self, cka_ST: Tensor) -> None:
        if isinstance(self.settings.layer_map, CkaMap):
            expected = (self.student.layers, self.teacher.layers)
            assert cka_ST.shape == expected, f"CKA has the shape {tuple(cka_ST.shape)}, not [L_s, L_t] = {expected}"
            self.layer_weights.copy_(cka_map(cka_ST, self.settings.layer_map.top_k))

    def forward(self, teacher_BLHTD: Tensor) -> Tensor:
        mapped = self._mapped(teacher_BLHTD)
        # Student layers and heads lead, tokens of the batch in one row: the order in which nothing has to be copied.
        mixed = torch.einsum("lsh,blhtd->lsbtd", self.mixer, mapped)
        projected = mixed.flatten(2, 3) @ self.projection.mT + self.bias[:, :, None]
        tensor_LHBTD: Tensor = projected.unflatten(2, mixed.shape[2:4])
        return tensor_LHBTD.permute(2, 0, 1, 3, 4)

    def features(self, teacher_BLHTD: Tensor) -> Tensor:
        return _by_layer(self._mapped(teacher_BLHTD))

    def targets(self, student_BLHTD: Tensor) -> Tensor:
        return _by_layer(student_BLHTD)

    def solve(self, normal: NormalEquations, settings: ClosedForm) -> None:
        teacher, student = self.teacher, self.student
        if settings.orthogonal and teacher.head_dim != student.head_dim:
            raise UserError(
                f"pretrain.orthogonal: a rotation needs equal head dims, and the teacher's is {teacher.head_dim}, the "
                f"student's {student.head_dim}; set pretrain.orthogonal: false"
            )
        heads, ours = (teacher.kv_heads, teacher.head_dim), (student.kv_heads, student.head_dim)
        xx = with_ridge(normal.xx, settings.ridge).unflatten(2, heads).unflatten(1, heads)
        xy = normal.xy.unflatten(2, ours).unflatten(1, heads)
        shared = not self.settings.per_layer, not self.settings.per_head
        mixer, projection, _ = alternating(xx, xy, self.mixer.double(), shared, settings.orthogonal)
        mixed = torch.einsum("lsh,lhd->lsd", mixer, normal.mean_x.unflatten(1, heads))
        self.mixer.copy_(mixer)
        self.projection.copy_(projection)
        self.bias.copy_(normal.mean_y.unflatten(1, ours) - (projection @ mixed.unsqueeze(-1)).squeeze(-1))

    @property
    def sizes(self) -> tuple[int, int, int]:
        teacher, student = self.teacher, self.student
        return student.layers, teacher.kv_heads * teacher.head_dim, student.kv_heads * student.head_dim

    def _mapped(self, teacher_BLHTD: Tensor) -> Tensor:
        """The teacher layers that each student layer reads, `[B, L_s, H_t, T, D_t]`."""
        if self.settings.layer_map.kind in ONE_HOT:
            return teacher_BLHTD[:, self.layer_index]
        return torch.einsum("lm,bmhtd->blhtd", self.layer_weights, teacher_BLHTD)


def _by_layer(tensor_BLHTD: Tensor) -> Tensor:
    """Heads and dims side by side, `[L, B, T, H · D]`."""
    return tensor_BLHTD.permute(1, 0, 3, 2, 4).flatten(3)

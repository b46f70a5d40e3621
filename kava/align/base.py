"""The contract of every aligner, and the flattening that some of them share."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from torch import Tensor, nn

from kava.align.least_squares import NormalEquations, ridge_regression
from kava.config.arms import Aligner as AlignerSettings
from kava.config.training import ClosedForm
from kava.errors import UserError
from kava.kv import Geometry, layers_first, tokens_first

S = TypeVar("S", bound=AlignerSettings)


class Aligner(nn.Module, ABC, Generic[S]):
    """Map of teacher keys (or values, with other weights) to the student's geometry; tokens are treated apart.

    Parameters
    ----------
    settings
        Of its kind.
    teacher, student
        KV geometries on either side.
    """

    kind: ClassVar[str]

    def __init__(self, settings: S, teacher: Geometry, student: Geometry) -> None:
        super().__init__()
        self.settings, self.teacher, self.student = settings, teacher, student

    @property
    def shares_coordinates(self) -> bool:
        """Whether it starts as the teacher's KV in the teacher's own units, which then are the student's.

        It reads KV whose channels have been centred and not standardised, and its output keeps the spread it has.
        """
        return False

    def set_teacher_mean(self, mean_LHTD: Tensor) -> None:
        """Take the teacher's channel means, `[L_t, H_t, 1, D_t]`; only one that `shares_coordinates` listens."""
        del mean_LHTD

    def set_layer_similarity(self, cka_ST: Tensor) -> None:
        """Take the CKA of student layers with teacher layers, `[L_s, L_t]`; only a layer map `cka` listens."""
        del cka_ST

    @abstractmethod
    def forward(self, teacher_BLHTD: Tensor) -> Tensor:
        """Standardised (or centred) teacher tensor `[B, L_t, H_t, T, D_t]` → `[B, L_s, H_s, T, D_s]`."""


def require_one_geometry(what: str, teacher: Geometry, student: Geometry) -> None:
    """Raise `UserError` where a head of the teacher is not one of the student's."""
    for name, theirs, ours in (
        ("KV heads", teacher.kv_heads, student.kv_heads),
        ("head dims", teacher.head_dim, student.head_dim),
    ):
        if theirs != ours:
            raise UserError(
                f"{what} takes the teacher's KV as it is, and the teacher has {theirs} {name}, the student {ours}; "
                "take another aligner, or a student cut from the teacher (student.keep_layers)"
            )


class Solved(Aligner[S]):
    """An aligner whose map, or the last linear part of it, least squares over all tokens can fit."""

    @abstractmethod
    def features(self, teacher_BLHTD: Tensor) -> Tensor:
        """What that part maps, of an input of `forward`: `[G, B, T, C]`, G problems apart."""

    @abstractmethod
    def targets(self, student_BLHTD: Tensor) -> Tensor:
        """Student KV as that part gives it: `[G, B, T, K]`."""

    @abstractmethod
    def solve(self, normal: NormalEquations, settings: ClosedForm) -> None:
        """Take the solution; `UserError` where there is none."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int, int]:
        """G, C and K."""


class SolvedChannels(Solved[S]):
    """A linear layer from features to all of the student's channels, solved for as one problem."""

    @property
    @abstractmethod
    def last(self) -> nn.Linear:
        """The layer."""

    def targets(self, student_BLHTD: Tensor) -> Tensor:
        return to_channels(student_BLHTD).unsqueeze(0)

    def solve(self, normal: NormalEquations, settings: ClosedForm) -> None:
        weight_GKC, bias_GK = ridge_regression(normal, settings.ridge)
        self.last.weight.copy_(weight_GKC[0])
        self.last.bias.copy_(bias_GK[0])

    @property
    def sizes(self) -> tuple[int, int, int]:
        return 1, self.last.in_features, self.last.out_features


def to_channels(tensor_BLHTD: Tensor) -> Tensor:
    """Layers, heads and dims side by side, `[B, T, C]`: what a channel means is given up."""
    return tokens_first(tensor_BLHTD).flatten(2)


def from_channels(tensor_BTC: Tensor, geometry: Geometry) -> Tensor:
    """The inverse of `to_channels` for a tensor of a geometry, `[B, L, H, T, D]`."""
    shape = (geometry.layers, geometry.kv_heads, geometry.head_dim)
    tensor_BTLHD: Tensor = tensor_BTC.unflatten(-1, shape)
    return layers_first(tensor_BTLHD)

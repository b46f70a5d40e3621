"""What a loss beside cross entropy and KV is: a formula that says what it reads, and over what it is a mean."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from kava.config.auxiliary import AuxiliaryLoss
from kava.kv import KeysValues
from kava.losses.schedule import weight_at

# What a batch holds of an optimizer step, and losses are means over: tokens with a label, weight of the tokens that the
# KV loss compares, tokens with teacher KV, examples, tokens for which the teacher's logits are stored, all tokens.
MeanOver = Literal["labels", "kv", "covered", "examples", "predicted", "tokens"]


class StudentPass(NamedTuple):
    """What one forward of the student shows.

    Attributes
    ----------
    kv
        Keys and values.
    hidden
        Last hidden states `[B, T, width]`, or those of all layers, embeddings first.
    attention
        Per layer, queries `[B, Ha, T, D]` and keys `[B, H, T, D]` after RoPE, and the factor on their product.
    answer
        True for tokens of the answer, `[B, T]`.
    head
        The language-model head.
    blocks
        What each block gives, before the final norm, L times `[B, T, width]`; none if no loss needs it.
    """

    kv: KeysValues
    hidden: tuple[Tensor, ...]
    attention: list[tuple[Tensor, Tensor, float]]
    answer: Tensor
    head: nn.Module
    blocks: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class BothModels:
    """What a loss may have to know of student and teacher before it is made.

    Attributes
    ----------
    student_width, teacher_width
        Of their hidden states; None where the store holds none of the teacher's.
    no_tokens
        Rows of the student's head that are no tokens, bool `[rows]`; None for no rows.
    """

    student_width: int
    teacher_width: int | None = None
    no_tokens: Tensor | None = None


class Auxiliary(nn.Module, ABC):
    """A loss of its own weight and schedule.

    Parameters
    ----------
    settings
        Its own, of the arm.
    models
        Student and teacher.

    Attributes
    ----------
    name
        Under which an arm sets it, and `metrics.jsonl` has it.
    reads
        Names of the teacher's signals that it compares with, see `kava.training.signals`.
    mean_over
        What of a step its value is a mean over, so that micro-batches add up.
    all_layers
        Whether it needs the student's hidden states of all layers.
    blocks
        Whether it needs what each of the student's blocks gives.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    mean_over: ClassVar[MeanOver]
    all_layers: ClassVar[bool] = False
    blocks: ClassVar[bool] = False

    def __init__(self, settings: AuxiliaryLoss, models: BothModels) -> None:
        super().__init__()
        del models
        self.settings = settings

    def weight(self, progress: float) -> float:
        """Beside the cross entropy, at a share of the steps."""
        settings = self.settings
        return weight_at(settings.weight, progress, settings.warmup_ratio, until=settings.until)

    @abstractmethod
    def forward(self, student: StudentPass, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch, a scalar; the batch holds the signals that it reads."""

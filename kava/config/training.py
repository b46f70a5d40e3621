"""Settings of the two training phases, with every default."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kava.config.arms import SOLVED, Arm
from kava.config.base import How, Positive, Rate, Settings

# The kind of `pretrain` that is meant where none is named: configurations had no other.
GRADIENT = "gradient"


class Optimization(Settings):
    steps: Positive = Field(1000, description="optimizer steps")
    batch_size: Positive = Field(2, description="examples per forward")
    accumulation: Positive = Field(16, description="forwards per optimizer step")
    projector_lr: Rate = Field(1e-3, description="recommended 5e-4 to 2e-3")
    weight_decay: float = Field(0.01, ge=0)
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of the steps with rising learning rate")
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="8-bit states by bitsandbytes"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="autocast dtype; weights are fp32")
    log_every: Positive = 10
    save_every: Annotated[Positive, How] = Field(200, description="steps between checkpoints")
    keep_checkpoints: Annotated[Positive, How] = 2
    num_processes: Positive = Field(
        1, description="processes that share each step (DDP), a GPU each; accumulation is a multiple of it"
    )

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        if self.steps % self.log_every:
            raise ValueError(
                f"steps={self.steps} is no multiple of log_every={self.log_every}; what follows the last full window "
                "would not be logged"
            )
        if self.accumulation % self.num_processes:
            raise ValueError(
                f"accumulation={self.accumulation} is no multiple of num_processes={self.num_processes}, which share "
                "the forwards of each step; lower batch_size and raise accumulation"
            )
        return self


class Pretrain(Optimization):
    """The projector learns to predict the KV of the frozen student, step by step."""

    # In no dump: keys and params of runs were made without it.
    kind: Literal["gradient"] = Field("gradient", exclude=True, description="may be left out")
    steps: Positive = 200

    def as_phase(self) -> Self:
        """As settings of a phase with steps."""
        return self

    def check(self, name: str, arm: Arm) -> None:
        """Every projector can be trained."""


class ClosedForm(Settings):
    """The projector is solved for by least squares, in one pass over the frozen student and the teacher's KV.

    Every token that an arm compares counts alike. Solved for are the maps of `linear` and `structured`, and the last
    layer of `flat` and `flat_matched` behind their first one as it was drawn.
    """

    kind: Literal["closed_form"] = "closed_form"
    ridge: float = Field(
        1e-3, gt=0, le=1, description="added to the diagonal of the normal matrix, as a share of its mean; 1e-5 to 1e-2"
    )
    orthogonal: bool = Field(
        False,
        description="of structured, between equal head dims: projections are rotations, which the head mixers scale",
    )
    examples: Positive | None = Field(None, description="first N training examples; null: all")
    batch_size: Positive = Field(8, description="examples per forward")

    def as_phase(self) -> Pretrain:
        """As settings of a phase with steps, which has none."""
        return Pretrain().model_copy(update={"steps": 0, "batch_size": self.batch_size, "accumulation": 1})

    def check(self, name: str, arm: Arm) -> None:
        """Raise `ValueError` where an arm asks for a projector that cannot be solved for."""
        if arm.aligner is None or not arm.pretrain_projector:
            return
        kind = arm.aligner.kind
        if kind not in SOLVED:
            raise ValueError(
                f"pretrain.kind: closed_form solves for aligners of kind {', '.join(SOLVED)}, and arms.{name} has "
                f"{kind}, with pretrain_projector: true; set that to false, or pretrain.kind: gradient"
            )
        if self.orthogonal and kind != "structured":
            raise ValueError(
                f"pretrain.orthogonal is about the dim projections of structured, and arms.{name} has the aligner "
                f"{kind}, with pretrain_projector: true; set that to false, or pretrain.orthogonal: false"
            )


def _with_kind(given: Any) -> Any:
    return {"kind": GRADIENT, **given} if isinstance(given, dict) and "kind" not in given else given


Pretraining = Annotated[Pretrain | ClosedForm, Field(discriminator="kind"), BeforeValidator(_with_kind)]


class Distill(Optimization):
    """Student and projector learn together."""

    student_lr: Rate = Field(5e-5, description="recommended 1e-5 to 1e-4")
    gradient_checkpointing: Annotated[bool, How] = Field(
        False,
        description="compute the student's layers once more in backward: less memory and the same result, for one more "
        "forward; may be changed between runs, since nothing depends on it",
    )
    compile_layers: Annotated[bool, How] = Field(
        False, description="compile the student's layers (torch.compile): a minute at the start, quicker steps on a GPU"
    )

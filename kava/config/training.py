"""Settings of the two training phases, with every default."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kava.config.base import How, Positive, Rate, Settings


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
    """The projector learns to predict the KV of the frozen student."""

    steps: Positive = 200


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

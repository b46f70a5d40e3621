"""The peak of one training step or one forward, from the real code on tensors without data.

Models are built from their configuration in torch's fake mode: every operator works out shapes and dtypes and computes
nothing, so a step of a 0.5B student takes seconds and no memory, and the plan cannot drift from what is trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from kava.align.layers import settle
from kava.align.projector import Projector
from kava.config.arms import Arm
from kava.config.base import Settings
from kava.config.models import Lora
from kava.losses.hidden import with_layers
from kava.models.capture import capture, capture_with_blocks, capture_with_hidden, geometry
from kava.models.cut import layers_of
from kava.models.load import build
from kava.plan.example import masks, teacher_side
from kava.plan.live import StepBytes
from kava.training.loop import backward
from kava.training.model import DistillationModel
from kava.training.signals.base import TeacherShape
from kava.training.student import prepare_student, student_dtype


class StepSettings(Settings):
    """What of a phase's settings a step's memory depends on; `learns` is false for a phase without steps."""

    batch_size: int
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    lora: Lora | None = None
    learns: bool = True


@dataclass(frozen=True)
class Traced:
    """What a step takes.

    Attributes
    ----------
    parts
        Category → bytes that live at the peak.
    trained
        `student` and `projector` → elements of every parameter with a gradient.
    projector
        Bytes of the projector's parameters.
    """

    parts: dict[str, int]
    trained: dict[str, list[int]]
    projector: int = 0


def trace_training(
    student_config: Any,
    teacher: TeacherShape,
    arm: Arm,
    settings: StepSettings,
    stage: str,
    tokens: int,
    step: bool = True,
) -> Traced:
    """Peak of a micro-batch's forward and backward, gradients of earlier ones being there already.

    Parameters
    ----------
    student_config
        Of `transformers`.
    teacher
        The teacher's side.
    arm
        Whose losses are computed.
    settings
        Of the phase.
    stage
        `pretrain` or `distill`.
    tokens
        Of every example: `max_length`.
    step
        False for the parameters alone, which is quick.
    """
    lora = settings.lora
    student = _causal_lm(student_config, student_dtype(lora, settings.precision))
    prepare_student(student, lora, settings.gradient_checkpointing)
    with _without_data():
        _fake(student)
        model, batch = training_model(student, teacher, arm, settings, stage, tokens)
        live = StepBytes(student_config.vocab_size)
        live.own([*student.parameters(), *student.buffers()], "weights")
        live.own([p.grad for p in student.parameters() if p.grad is not None], "gradients")
        live.own([*model.parameters(), *model.buffers()], "projector")
        live.own([p.grad for p in model.parameters() if p.grad is not None], "projector")
        live.own(batch.values(), "batch")
        if step:
            with live:
                run_step(model, batch, settings, live)
        trained = {path: p.numel() for path, p in model.named_parameters() if p.requires_grad}
        own = {"student": [n for path, n in trained.items() if path.startswith("student.")]}
        own["projector"] = [n for path, n in trained.items() if not path.startswith("student.")]
        return Traced(live.at_peak, own, 4 * model.projector.parameter_count if model.projector else 0)


def training_model(
    student: Any, teacher: TeacherShape, arm: Arm, settings: StepSettings, stage: str, tokens: int
) -> tuple[DistillationModel, dict[str, Tensor]]:
    """Model and largest batch of a phase, gradients being there; with data or without, as the student and the mode are.

    Parameters are those of `trace_training`, and the student as `prepare_student` leaves it.
    """
    arm = with_layers(arm, student.config, teacher.geometry.layers, teacher.token_hidden_states)
    if arm.auxiliary.hidden:
        teacher = replace(teacher, token_hidden_states=arm.auxiliary.hidden.layers or ())
    projector = None
    if arm.aligner:
        projector = Projector(
            settle(arm.aligner, student.config), teacher.geometry, geometry(student.config), arm.loss.center
        )
    model = DistillationModel(student, projector, arm, stage == "distill", teacher.keys, teacher.width).train()
    if not settings.learns:
        model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    real = masks(settings.batch_size, tokens, teacher.prompt, teacher.answer)
    return model, real | teacher_side(arm, real, teacher)


def run_step(
    model: DistillationModel, batch: dict[str, Tensor], settings: StepSettings, live: StepBytes | None = None
) -> None:
    """Forward and backward of a micro-batch as training runs them, or the forward of a phase that only measures."""
    if live:
        model.register_forward_hook(lambda *_: setattr(live, "phase", "temporary"))
    if settings.learns:
        backward(model, batch, settings.precision)
    else:
        with torch.no_grad():
            model(**batch)


def trace_forward(
    config: Any,
    dtype: torch.dtype,
    examples: int,
    tokens: int,
    keys: str | None = "pre_rope",
    hidden: bool = False,
    blocks: int = 0,
) -> Traced:
    """Peak of a forward without gradients and without the head.

    Parameters
    ----------
    config, dtype
        Of the model.
    examples, tokens
        Shape of the batch.
    keys, hidden, blocks
        Form of the keys that `extract` captures, whether it wants hidden states, and behind how many blocks it wants
        those of every token; keys are None for a plain forward.
    """
    model, live = _causal_lm(config, dtype), StepBytes(config.vocab_size)
    with _without_data():
        _fake(model)
        live.own([*model.parameters(), *model.buffers()], "weights")
        with live:
            forward(model, examples, tokens, keys, hidden, blocks)
        return Traced(live.at_peak, {})


@torch.no_grad()
def forward(model: Any, examples: int, tokens: int, keys: str | None, hidden: bool = False, blocks: int = 0) -> None:
    """The forward of `trace_forward`, of a model that is there."""
    real = masks(examples, tokens)
    if keys is None:
        model.base_model(input_ids=real["input_ids"], attention_mask=real["attention_mask"], use_cache=True)
        return
    inputs = model, real["input_ids"], real["attention_mask"], keys
    if blocks:
        _, states, _ = capture_with_blocks(*inputs)
        torch.stack([state.bfloat16() for state in states[1 : 1 + blocks]], 2)
    else:
        (capture_with_hidden if hidden else capture)(*inputs)


class Counts(NamedTuple):
    """Parameters of a model, tied ones once, and the matrices that bitsandbytes quantises.

    Attributes
    ----------
    all
        Parameters.
    linear, largest
        Parameters of those matrices, and of the largest of them.
    rows, widest
        Their outputs in sum, and the longest side of any.
    """

    all: int
    linear: int
    largest: int
    rows: int
    widest: int


def parameter_counts(config: Any) -> Counts:
    """Parameters of a causal language model, counted on the meta device; bitsandbytes leaves the head as it is."""
    with torch.device("meta"):
        model = build(config)
    return _counts_of(model, model.get_output_embeddings())


def layer_counts(config: Any) -> Counts:
    """The same of one decoder layer: the largest of a model, and all that matters of those of a usual one."""
    with torch.device("meta"):
        _, layers = layers_of(build(config))
    return max((_counts_of(layer) for layer in layers), key=lambda counts: counts.all)


def _counts_of(module: nn.Module, head: nn.Module | None = None) -> Counts:
    from transformers.pytorch_utils import Conv1D

    matrices = [m for m in module.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    sizes = [m.weight.numel() for m in matrices]
    return Counts(
        sum(parameter.numel() for parameter in module.parameters()),
        sum(sizes),
        max(sizes, default=0),
        sum(m.nf if isinstance(m, Conv1D) else m.out_features for m in matrices),
        max((max(m.weight.shape) for m in matrices), default=0),
    )


def _causal_lm(config: Any, dtype: torch.dtype) -> Any:
    """On the meta device, where modules may be exchanged and moved, which those of fake tensors may not."""
    with torch.device("meta"):
        return build(config, dtype=dtype)


def _fake(model: nn.Module) -> None:
    """Give a model of the meta device fake tensors on the CPU, whose autocast and attention are a real one's."""
    made: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in made:
                    like = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made[parameter] = nn.Parameter(like, parameter.requires_grad)
                module._parameters[name] = made[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


@contextmanager
def _without_data() -> Iterator[None]:
    # A projector is drawn in fake mode too; the caller's random numbers are to be those of a run without a plan.
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        yield

"""The peak of one training step or one forward, from the real code on tensors without data.

Models are built from their configuration in torch's fake mode: every operator works out shapes and dtypes and computes
nothing, so a step of a 0.5B student takes seconds and no memory, and the plan cannot drift from what is trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch._subclasses import FakeTensorMode

from kava.align.projector import Projector
from kava.cache.capture import Geometry, capture, capture_with_hidden, geometry
from kava.plan.example import masks, teacher_side
from kava.plan.live import LiveBytes
from kava.plan.student import prepared, trained_sizes
from kava.training.model import DistillationModel


@dataclass(frozen=True)
class Teacher:
    """What a step needs to know of the teacher's side: KV geometry, hidden width, codec's kind, stored logits."""

    geometry: Geometry
    width: int
    codec: str = "bf16"
    top: int = 0
    keys: str = "pre_rope"


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
    student_config: Any, teacher: Teacher, arm: dict[str, Any], settings: dict[str, Any], stage: str, tokens: int
) -> Traced:
    """Peak of a micro-batch's forward and backward, gradients of earlier ones being there already.

    Parameters
    ----------
    student_config
        Of `transformers`.
    teacher
        The teacher's side.
    arm
        Settings of the arm, as JSON values.
    settings
        `batch_size`, `precision`, `learns` (false for a phase without steps, which only measures), and what
        `kava.plan.student` reads.
    stage
        `pretrain` or `distill`.
    tokens
        Of every example: `max_length`.
    """
    with _without_data():
        return training_step(_causal_lm(student_config, torch.float32), teacher, arm, settings, stage, tokens)


def training_step(
    student: Any, teacher: Teacher, arm: dict[str, Any], settings: dict[str, Any], stage: str, tokens: int
) -> Traced:
    """As `trace_training`, of a student that is there, in the mode that is active; real tensors are computed."""
    trains_student = stage == "distill"
    student = prepared(student, settings, trains_student)
    projector = None
    if arm["aligner"]:
        projector = Projector(arm["aligner"], teacher.geometry, geometry(student.config), arm["loss"]["center"])
    model = DistillationModel(student, projector, arm, trains_student, teacher.keys, teacher.width).train()
    learns = settings["learns"]
    if not learns:
        model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    real = masks(settings["batch_size"], tokens)
    batch = real | teacher_side(arm, real, teacher.geometry, teacher.width, teacher.codec, teacher.top)
    live = LiveBytes(student.config.vocab_size)
    for category, module in (("weights", student), ("projector", projector), ("projector", model.auxiliary)):
        if module is not None:
            live.own([*module.parameters(), *module.buffers()], category)
            gradients = "gradients" if category == "weights" else category
            live.own([p.grad for p in module.parameters() if p.grad is not None], gradients)
    live.own(batch.values(), "batch")
    with live, torch.set_grad_enabled(learns):
        with _autocast(settings["precision"]):
            loss = model(**batch)["loss"]
        live.phase = "temporary"
        if learns:
            loss.backward()
    own = {"student": trained_sizes(student)}
    own["projector"] = [size for module in (projector, model.auxiliary) if module for size in trained_sizes(module)]
    return Traced(live.at_peak, own, 4 * projector.parameter_count if projector else 0)


def trace_forward(
    config: Any, dtype: torch.dtype, examples: int, tokens: int, keys: str | None = "pre_rope", hidden: bool = False
) -> Traced:
    """Peak of a forward without gradients and without the head.

    Parameters
    ----------
    config, dtype
        Of the model.
    examples, tokens
        Shape of the batch.
    keys, hidden
        Form of the keys that `extract` captures, and whether it wants hidden states; None for a plain forward.
    """
    with _without_data():
        return forward(_causal_lm(config, dtype), examples, tokens, keys, hidden)


def forward(model: Any, examples: int, tokens: int, keys: str | None, hidden: bool = False) -> Traced:
    """As `trace_forward`, of a model that is there."""
    real, live = masks(examples, tokens), LiveBytes(model.config.vocab_size)
    live.own([*model.parameters(), *model.buffers()], "weights")
    live.own([real["input_ids"], real["attention_mask"]], "batch")
    run = capture_with_hidden if hidden else capture
    with torch.no_grad(), live:
        if keys is None:
            model.base_model(input_ids=real["input_ids"], attention_mask=real["attention_mask"], use_cache=True)
        else:
            run(model, real["input_ids"], real["attention_mask"], keys)
    return Traced(live.at_peak, {})


class Counts(NamedTuple):
    """Parameters of a model, tied ones once: all, those of the matrices that NF4 quantises, those of the largest."""

    all: int
    linear: int
    largest: int


def parameter_counts(config: Any) -> Counts:
    """Parameters of a causal language model, counted on the meta device; bitsandbytes leaves the head as it is."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    matrices = [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return Counts(sum(parameter.numel() for parameter in model.parameters()), sum(matrices), max(matrices, default=0))


def _causal_lm(config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _autocast(precision: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def _without_data() -> Iterator[None]:
    # Weights are drawn in fake mode too; the caller's random numbers are to be those of a run without a plan.
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        yield

"""The student as a phase trains it: its dtype, which weights, which activations are kept, how its layers run."""

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from kava.config.models import Lora
from kava.training.lora import add_lora


def student_dtype(lora: Lora | None, precision: str) -> torch.dtype:
    """Dtype that a student is loaded in: fp32 if it is trained, since bf16 loses updates of 5e-5 to rounding."""
    return torch.bfloat16 if lora and precision == "bfloat16" else torch.float32


def prepare_student(student: Any, lora: Lora | None, gradient_checkpointing: bool, compiled: bool = False) -> None:
    """Give a student its adapters, checkpoints and compiled layers, in place.

    Parameters
    ----------
    student
        A causal language model of `transformers`.
    lora
        Settings of the adapters; None to train all weights.
    gradient_checkpointing
        Compute each layer's activations again in the backward pass. The hooks that read KV get their gradients only
        without reentry.
    compiled
        Compile a decoder layer, once for all of them and for all lengths.
    """
    if lora:
        add_lora(student, lora)
    if gradient_checkpointing:
        student.activation_checkpointing_enable({"use_reentrant": False})
    if compiled:
        for module in student.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile(dynamic=True)

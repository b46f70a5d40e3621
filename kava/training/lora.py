"""Low-rank adapters on the student (LoRA, Hu et al. 2021, arXiv 2106.09685), by peft: added, trained, merged away."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from kava.config.models import Lora
from kava.errors import UserError


def add_lora(student: Any, settings: Lora) -> None:
    """Freeze a student and give it fp32 adapters, which alone are trained; in place.

    Parameters
    ----------
    student
        A causal language model of `transformers`; its class, configuration and head stay as they are.
    settings
        Of the adapters.

    Raises
    ------
    UserError
        A target that the student's blocks do not have.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = {
        name.rpartition(".")[2]: type(module)
        for name, module in student.base_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    if unknown := sorted(set(settings.targets) - linear.keys()):
        raise UserError(
            f"student.lora.targets: {student.config.model_type} has no {', '.join(unknown)}; "
            f"allowed: {', '.join(sorted(linear))}"
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        fan_in_fan_out=any(linear[name] is Conv1D for name in settings.targets),
    )
    student.requires_grad_(False)
    inject_adapter_in_model(config, student)
    for parameter in student.parameters():
        if parameter.requires_grad:  # peft gives adapters the dtype of what they adapt
            parameter.data = parameter.data.float()


def merge_lora(student: Any) -> None:
    """Add adapters to the weights that they adapt, in fp32, and leave a plain model; in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    student.float()
    for name, module in list(student.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            student.set_submodule(name, module.get_base_layer())
    del student.peft_config

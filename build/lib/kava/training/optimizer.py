"""AdamW: one learning rate for the student and one for all projections, with states of 32 or 8 bits."""

from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Trained parameters by learning rate, with weight decay and without; norms and biases do not decay."""
    groups = []
    for name, module in model.named_children():
        trained = {path: p for path, p in module.named_parameters() if p.requires_grad}
        for decays in (True, False):
            # A bias per layer and head has three dimensions, and is a bias all the same.
            chosen = [p for path, p in trained.items() if (p.dim() >= 2 and not path.endswith("bias")) == decays]
            if chosen:
                decay = settings["weight_decay"] if decays else 0.0
                rate = "student_lr" if name == "student" else "projector_lr"
                groups.append({"params": chosen, "rate": rate, "lr": settings[rate], "weight_decay": decay})
    return groups


def make_optimizer(kind: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """`adamw`, or bitsandbytes' with 8-bit states, on the device or paged."""
    if kind == "adamw":
        return torch.optim.AdamW(groups)
    import bitsandbytes

    return {"adamw_8bit": bitsandbytes.optim.AdamW8bit, "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit}[kind](
        groups
    )

"""AdamW: one learning rate for the student and one for all projections, with states of 32 or 8 bits."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from kava.config.training import Distill, Pretrain


def parameter_groups(model: nn.Module, settings: Pretrain | Distill) -> list[dict[str, Any]]:
    """Trained parameters by learning rate, with weight decay and without; norms and biases do not decay."""
    groups = []
    for name, module in model.named_children():
        trained = {path: p for path, p in module.named_parameters() if p.requires_grad}
        for decays in (True, False):
            # A bias per layer and head has three dimensions, and is a bias all the same.
            chosen = [p for path, p in trained.items() if (p.dim() >= 2 and not path.endswith("bias")) == decays]
            if chosen:
                decay = settings.weight_decay if decays else 0.0
                rate, lr = "projector_lr", settings.projector_lr
                if name == "student":
                    assert isinstance(settings, Distill), "a student is trained by distillation alone"
                    rate, lr = "student_lr", settings.student_lr
                groups.append({"params": chosen, "rate": rate, "lr": lr, "weight_decay": decay})
    return groups


def make_optimizer(kind: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """`adamw`, or bitsandbytes' with 8-bit states, on the device or paged."""
    if kind == "adamw":
        return torch.optim.AdamW(groups)
    import bitsandbytes

    kinds = {"adamw_8bit": bitsandbytes.optim.AdamW8bit, "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit}
    optimizer: torch.optim.Optimizer = kinds[kind](groups)
    return optimizer


def cosine_schedule(optimizer: torch.optim.Optimizer, warmup_ratio: float, steps: int) -> LambdaLR:
    """Learning rates that rise from 0 in a share of the steps, and then fall to 0 by half a cosine."""
    rising = round(warmup_ratio * steps)

    def share(step: int) -> float:
        if step < rising:
            return step / rising
        fallen = (step - rising) / max(1, steps - rising)
        return 0.5 * (1.0 + math.cos(math.pi * fallen))

    return LambdaLR(optimizer, share)

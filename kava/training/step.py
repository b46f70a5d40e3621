"""Forward and backward of one micro-batch, as training runs it and as the plan traces it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kava.training.model import WHOLE


def backward(
    model: nn.Module, batch: Mapping[str, Any], precision: str, shares: Mapping[str, float] = WHOLE, processes: int = 1
) -> dict[str, Tensor]:
    """Losses of a micro-batch, whose gradients have been added to the parameters'.

    Parameters
    ----------
    model
        A `DistillationModel`, or one that is wrapped for several processes.
    batch, shares
        A `Batch`, and which share of its optimizer step it is.
    precision
        `float32`, or `bfloat16` for autocast.
    processes
        How many share the step: their gradients are averaged, while their losses are shares of one sum.
    """
    # Hardly a weight is used twice in a forward: its bf16 copy need not outlive its layer, let alone all layers.
    low = precision == "bfloat16"
    with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=low, cache_enabled=False):
        losses: dict[str, Tensor] = model(shares=shares, **batch)
    (losses["loss"] * processes).backward()
    return losses

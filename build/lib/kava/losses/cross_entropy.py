"""Cross entropy of the next token, without the logits of all tokens at once."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kava.errors import UserError

# So many logits are computed as one tensor, which is quicker; more of them in pieces of about so many.
LOGITS_AT_ONCE = 2**24
# What families do to logits after the head, by the setting of theirs that says so.
AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_scale")


def check_head(student: Any) -> None:
    """Raise `UserError` for a model whose logits are not its head's output."""
    settings = student.config.get_text_config().to_dict()
    for name in AFTER_THE_HEAD:
        if settings.get(name) not in (None, 1):
            raise UserError(
                f"{student.config.model_type} changes logits after its head ({name}: {settings[name]}), and its cross "
                "entropy is not known here; choose a student of another family"
            )


def cross_entropy(hidden_NW: Tensor, head: nn.Module, targets_N: Tensor) -> Tensor:
    """Mean cross entropy in nats, a float32 scalar.

    Over a vocabulary of 151,936 the logits of a thousand tokens are 580 MiB in float32, and their gradients as much
    again; pieces are computed anew in the backward pass. Under autocast one copy of the weight in low precision serves
    all pieces: the gradients which add up there are half as large, and a sum of some ten is rounded as one of them is.

    Parameters
    ----------
    hidden_NW
        Last hidden states that predict the targets.
    head
        The language-model head, from hidden states to logits.
    targets_N
        Token ids, int64.
    """
    if not isinstance(head, nn.Linear) or len(targets_N) * head.out_features <= LOGITS_AT_ONCE:
        return nn.functional.cross_entropy(head(hidden_NW).float(), targets_N)
    kind = hidden_NW.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
    weight, rows = head.weight.to(dtype), max(1, LOGITS_AT_ONCE // head.out_features)
    pieces = [
        checkpoint(_sum, hidden, weight, head.bias, targets, use_reentrant=False, preserve_rng_state=False)
        for hidden, targets in zip(hidden_NW.split(rows), targets_N.split(rows), strict=True)
    ]
    return torch.stack(pieces).sum() / len(targets_N)


def _sum(hidden_NW: Tensor, weight_VW: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    logits = nn.functional.linear(hidden_NW, weight_VW, bias_V)
    return nn.functional.cross_entropy(logits.float(), targets_N, reduction="sum")

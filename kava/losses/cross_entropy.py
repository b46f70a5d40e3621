"""Cross entropy of the next token, without the logits of all tokens at once."""

from typing import Any

import torch
from torch import Tensor, nn

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

    Over a vocabulary of 151,936 a thousand logits are 580 MiB in float32, and their gradients as much again. In pieces
    the gradients are computed with the loss, so a second derivative is not to be had.

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
    # The operation is none that autocast knows: its inputs are cast as those of any other product.
    kind = hidden_NW.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
    rows = max(1, LOGITS_AT_ONCE // head.out_features)
    loss = nn.functional.linear_cross_entropy(
        hidden_NW.to(dtype),
        head.weight.to(dtype),
        targets_N,
        linear_bias=None if head.bias is None else head.bias.to(dtype),
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=rows),
    )
    return loss.float()

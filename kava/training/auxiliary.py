"""The auxiliary losses of one arm: hidden states, answer logits, and similarity without a projector."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from kava.align.layers import ratio_map
from kava.kv import KeysValues
from kava.losses.cka import cka_loss
from kava.losses.codi import codi
from kava.losses.logit_kd import logit_kd


class AuxiliaryLosses(nn.Module):
    """Losses beside cross entropy and KV; each is given apart, so that it can be weighed and logged apart.

    Parameters
    ----------
    settings
        Name → settings, or None for a loss that is not used.
    student_width, teacher_width
        Widths of the hidden states; a projection is learnt where they differ.
    no_tokens
        Rows of the student's head that are no tokens, bool `[rows]`; None for no rows.
    """

    no_tokens: Tensor | None

    def __init__(
        self,
        settings: dict[str, Any],
        student_width: int,
        teacher_width: int | None,
        no_tokens: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("no_tokens", no_tokens, persistent=False)
        self.used = [name for name, given in settings.items() if given]
        self.projection: nn.Module = nn.Identity()
        if self.reads_hidden and teacher_width != student_width:
            assert teacher_width is not None, "codi needs the width of the teacher's hidden states"
            self.projection = nn.Linear(teacher_width, student_width, bias=False)

    @property
    def reads_hidden(self) -> bool:
        """Whether the hidden states of all layers are needed."""
        return "codi" in self.used

    def forward(
        self,
        due: Collection[str],
        kv: KeysValues,
        hidden: tuple[Tensor, ...],
        answer_BT: Tensor,
        head: nn.Module,
        batch: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Losses by name.

        Parameters
        ----------
        due
            Those that are wanted now.
        kv
            The student's keys and values.
        hidden
            The student's hidden states, those of all layers if `reads_hidden`.
        answer_BT
            True for tokens of the answer.
        head
            The student's language-model head.
        batch
            A `Batch` with what the losses read of the teacher.
        """
        losses = {}
        if "codi" in due:
            losses["codi"] = self._codi(hidden, answer_BT, batch["teacher_hidden"])
        if "logit_kd" in due:
            logits = self._among_tokens(head(hidden[-1][:, :-1][answer_BT[:, 1:]]))
            losses["logit_kd"] = logit_kd(logits, batch["topk_ids"], batch["topk_logprobs"])
        if "cka" in due:
            teacher = KeysValues(batch["teacher_keys"], batch["teacher_values"])
            layers = ratio_map(teacher.keys.shape[1], kv.keys.shape[1])
            both = [cka_loss(s, t[:, layers], batch["kv_mask"]) for s, t in zip(kv, teacher, strict=True)]
            losses["cka"] = (both[0] + both[1]) / 2
        return losses

    def _among_tokens(self, logits_NV: Tensor) -> Tensor:
        """Logits without what the head's rows that are no tokens give; the teacher's are left out as well."""
        return logits_NV if self.no_tokens is None else logits_NV.masked_fill(self.no_tokens, -torch.inf)

    def _codi(self, hidden: tuple[Tensor, ...], answer_BT: Tensor, teacher_BLW: Tensor) -> Tensor:
        last = answer_BT.int().argmax(1) - 1  # the token before the answer
        assert bool((last >= 0).all()), "an example begins with its answer"
        rows = range(len(last))
        student = [of_layer[rows, last] for of_layer in hidden]
        chosen = ratio_map(teacher_BLW.shape[1], len(hidden))
        projected = self.projection(teacher_BLW[:, chosen].to(student[0].dtype))
        return codi(torch.stack(student, 1), projected)

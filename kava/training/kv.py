"""The KV objective of one arm: which tensors and tokens are compared, in which coordinates, by which loss."""

import torch
from torch import Tensor

from kava.align.projector import Projector
from kava.config.arms import Arm, StructuralLoss
from kava.kv import TENSORS, KeysValues
from kava.losses import kv_loss
from kava.losses.structural import attention_kl


class KvObjective:
    """Distance of the student's KV from the projected teacher KV, for one arm."""

    def __init__(self, arm: Arm) -> None:
        self.loss = arm.loss
        self.compared = [i for i, name in enumerate(TENSORS) if arm.tensors in ("both", name)]
        # Weight of the attention KL; above 0 the student's queries are needed.
        self.attention_weight = arm.loss.attention if isinstance(arm.loss, StructuralLoss) else 0.0

    def distance(
        self, student: KeysValues, projected: KeysValues, weight_BT: Tensor, projector: Projector, progress: float
    ) -> Tensor:
        """Mean of the arm's loss over the tensors that are compared; both sides `[B, L_s, H_s, T, D_s]`."""
        losses = []
        for i in self.compared:
            s, p = student[i], projected[i]
            if self.loss.center:
                s, p = s - projector.student_mean[i], p - projector.student_mean[i]
            if self.loss.standardize:
                s, p = s / projector.student_std[i], p / projector.student_std[i]
            losses.append(kv_loss(self.loss, s, p, weight_BT, progress))
        return torch.stack(losses).mean()

    def attention(
        self,
        observed: list[tuple[Tensor, Tensor, float]],
        projected_keys: Tensor,
        attention_mask_BT: Tensor,
        weight_BT: Tensor,
    ) -> Tensor:
        """KL between the attention that the student's queries pay to projected keys and to its own, after RoPE."""
        # With a gradient, queries of norm zero would bring the loss to zero. Layers may scale in ways of their own.
        queries = torch.stack([queries * scaling for queries, _, scaling in observed], dim=1).detach()
        own = torch.stack([keys for _, keys, _ in observed], dim=1)
        return attention_kl(queries, own, projected_keys, attention_mask_BT, weight_BT, scaling=1.0)

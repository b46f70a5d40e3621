"""One training step: student forward, projected teacher KV, cross entropy and KV loss."""

from typing import Any

import torch
from torch import Tensor, nn

from kava.align.projector import ChannelMean, Projector
from kava.cache.capture import KeysValues, capture
from kava.losses import kv_loss
from kava.losses.masking import cosine, masked_mean
from kava.metrics import Pair
from kava.training.batches import Batch, Batches, teacher_kv

CALIBRATION_EXAMPLES = 64


class DistillationModel(nn.Module):
    """Student and projector as one module for the Trainer.

    Parameters
    ----------
    student
        Causal language model with fp32 weights.
    projector
        None for the SFT control.
    arm
        Settings of the arm, as JSON values.
    train_student
        False while the projector is pretrained: the student gives targets and gets no gradient.
    keys
        Form of the stored keys, `pre_rope` or `post_rope`; the student's are read alike.
    """

    def __init__(
        self, student: Any, projector: Projector | None, arm: dict[str, Any], train_student: bool, keys: str
    ) -> None:
        super().__init__()
        self.student, self.projector, self.arm, self.keys = student, projector, arm, keys
        self.train_student = train_student
        student.requires_grad_(train_student)

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Loss of a `Batch`; its detached parts (`ce`, `kv`, `cos_sim`, `cos_sim_centered`) stand beside it."""
        with torch.set_grad_enabled(self.train_student and torch.is_grad_enabled()):
            captured, hidden_BTW = capture(self.student, batch["input_ids"], batch["attention_mask"], self.keys)
        parts: dict[str, Tensor] = {}
        loss = hidden_BTW.new_zeros(())
        if self.train_student:
            parts["ce"] = self._cross_entropy(hidden_BTW, batch["input_ids"], batch["label_mask"])
            loss = loss + parts["ce"]
        if self.projector is not None:
            projected = self.projector(KeysValues(batch["teacher_keys"], batch["teacher_values"]))
            parts["kv"] = self.kv_loss(captured, projected, batch["kv_mask"])
            loss = loss + (self.arm["kv_weight"] if self.train_student else 1.0) * parts["kv"]
            parts |= self._similarity(captured, projected, batch["kv_mask"])
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    def kv_loss(self, student: KeysValues, projected: KeysValues, mask_BT: Tensor) -> Tensor:
        """Mean of the arm's loss over keys and values."""
        assert self.projector is not None
        losses = []
        for i, (s, p) in enumerate(zip(student, projected, strict=True)):
            mean = self.projector.student_mean[i] if self.arm["loss"]["center"] else 0.0
            losses.append(kv_loss(self.arm["loss"], s - mean, p - mean, mask_BT))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def calibrate(self, batches: Batches, device: torch.device, batch_size: int, base_student: bool) -> None:
        """Fix the channel means that `center` and the metrics remove, from the first training examples.

        Parameters
        ----------
        batches
            The training split.
        device, batch_size
            Where and how to run.
        base_student
            True before pretraining, when the student still is the base student whose means are wanted.
        """
        if self.projector is None:
            return
        self.eval()
        projector = self.projector
        student_mean, output_mean = ChannelMean(), ChannelMean()
        projector.output_mean.zero_()
        for batch in batches.slice(range(min(CALIBRATION_EXAMPLES, len(batches))), batch_size):
            mask = batch["kv_mask"].to(device)
            if base_student:
                captured, _ = capture(
                    self.student, batch["input_ids"].to(device), batch["attention_mask"].to(device), self.keys
                )
                student_mean.add(captured, mask)
            projected = projector(teacher_kv(batch, device))
            output_mean.add([tensor - projector.shift(i) for i, tensor in enumerate(projected)], mask)
        if base_student:
            projector.student_mean.copy_(student_mean.mean)
        projector.output_mean.copy_(output_mean.mean)

    def predict(self, batch: Batch) -> Pair:
        """Student KV and projected teacher KV of a batch, for the metrics."""
        assert self.projector is not None
        device = self.projector.student_mean.device
        ids = batch["input_ids"].to(device)
        captured, _ = capture(self.student, ids, batch["attention_mask"].to(device), self.keys)
        return Pair(captured, self.projector(teacher_kv(batch, device)), ids, batch["kv_mask"].to(device))

    def _cross_entropy(self, hidden_BTW: Tensor, ids_BT: Tensor, label_mask_BT: Tensor) -> Tensor:
        """Logits only where there is a label: over a vocabulary of 151,936 they are the largest tensor of a step."""
        predicts = label_mask_BT[:, 1:].bool()
        logits = self.student.get_output_embeddings()(hidden_BTW[:, :-1][predicts])
        return nn.functional.cross_entropy(logits.float(), ids_BT[:, 1:][predicts])

    @torch.no_grad()
    def _similarity(self, student: KeysValues, projected: KeysValues, mask_BT: Tensor) -> dict[str, Tensor]:
        """Running cosines of the training batch, raw and with the base student's means removed."""
        assert self.projector is not None
        raw, centred = [], []
        for i, (s, p) in enumerate(zip(student, projected, strict=True)):
            mean = self.projector.student_mean[i]
            raw.append(masked_mean(cosine(s.float(), p.float()), mask_BT))
            centred.append(masked_mean(cosine(s.float() - mean, p.float() - mean), mask_BT))
        return {"cos_sim": torch.stack(raw).mean(), "cos_sim_centered": torch.stack(centred).mean()}

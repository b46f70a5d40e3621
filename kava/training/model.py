"""One training step: student forward, projected teacher KV, cross entropy, KV loss and auxiliary losses."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, get_args

import torch
from torch import Tensor, nn

from kava import losses
from kava.align.projector import Projector
from kava.config.arms import Arm
from kava.data.tokens import Segment
from kava.kv import KeysValues
from kava.losses.auxiliary import Auxiliary, BothModels, MeanOver, StudentPass
from kava.losses.cross_entropy import check_head, cross_entropy
from kava.losses.masking import cosine, masked_mean, safe_norm
from kava.losses.schedule import weight_at
from kava.metrics import Pair
from kava.models.capture import capture, capture_with_blocks, capture_with_hidden, observed_attention, rotate
from kava.training.batches import Batch, teacher_kv
from kava.training.kv import KvObjective

WHOLE: dict[str, float] = dict.fromkeys(get_args(MeanOver), 1.0)
SIMILARITIES = ("cos_sim", "cos_sim_centered", "magnitude")


def parts() -> tuple[str, ...]:
    """What a loss may be the sum of, and the similarities beside it, in the order of `metrics.jsonl`."""
    return ("ce", "kv", "attention", *(loss.name for loss in losses.AUXILIARY), *SIMILARITIES)


class DistillationModel(nn.Module):
    """Student and projector as one module, which the loop trains.

    Parameters
    ----------
    student
        Causal language model; what of it needs a gradient is trained and has fp32 weights.
    projector
        None for an arm without KV loss.
    arm
        Its losses.
    train_student
        False while the projector is pretrained: the student gives targets and gets no gradient.
    keys
        Form of the stored keys, `pre_rope` or `post_rope`; the student's are read alike.
    teacher_width
        Width of the teacher's hidden states, for losses that read them.
    no_tokens
        Rows of the student's head that are no tokens, for losses on logits; None for no rows.

    Attributes
    ----------
    progress
        Share of the phase that is done; schedules go by it.
    """

    def __init__(
        self,
        student: Any,
        projector: Projector | None,
        arm: Arm,
        train_student: bool,
        keys: str,
        teacher_width: int | None = None,
        no_tokens: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student, self.projector, self.arm, self.keys = student, projector, arm, keys
        self.train_student = train_student
        self.progress = 0.0
        if train_student:
            check_head(student)
        else:
            student.requires_grad_(False)
        if projector is not None and train_student:
            projector.requires_grad_(arm.train_projector)
        self.objective = KvObjective(arm) if projector else None
        models = BothModels(student.config.hidden_size, teacher_width, no_tokens)
        used = losses.auxiliaries(arm) if train_student else []
        self._auxiliaries = [loss(settings, models) for loss, settings in used]
        self.auxiliary = nn.ModuleList(self._auxiliaries)

    def train(self, mode: bool = True) -> "DistillationModel":
        """What is not trained stays in evaluation mode: dropout would only blur its targets."""
        super().train(mode)
        for module in (self.student, self.projector):
            if module is not None and not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self

    def forward(self, shares: Mapping[str, float] = WHOLE, **batch: Any) -> dict[str, Tensor]:
        """Loss of a `Batch`; its detached parts, see `parts`, stand beside it.

        Parameters
        ----------
        shares
            Of a whole optimizer step, what the batch holds by `MeanOver`: each part of the loss is multiplied by the
            share of what it is a mean over.
        **batch
            A `Batch`.
        """
        # A loss whose time is over is neither read for nor computed: the rest of the run is as cheap as the control.
        weights = self.weights(self.progress)
        due = self._due(weights)
        with torch.set_grad_enabled(self.train_student and torch.is_grad_enabled()):
            own = self._read(batch, "kv" in weights, due)
        found: dict[str, Tensor] = {}
        loss = own.hidden[-1].new_zeros(())
        if self.train_student:
            ce = self._cross_entropy(own.hidden[-1], batch["input_ids"], batch["label_mask"])
            found["ce"] = shares["labels"] * ce
            loss = loss + found["ce"]
        if self.projector is not None and "kv" in weights:
            of_kv, kv = self._kv(own, batch)
            found |= {name: shares["covered" if name in SIMILARITIES else "kv"] * part for name, part in of_kv.items()}
            loss = loss + weights["kv"] * shares["kv"] * kv
        for auxiliary in due:
            found[auxiliary.name] = shares[auxiliary.mean_over] * auxiliary(own, batch)
            loss = loss + weights[auxiliary.name] * found[auxiliary.name]
        return {"loss": loss} | {name: part.detach() for name, part in found.items()}

    def weights(self, progress: float) -> dict[str, float]:
        """Losses on what the teacher left that count at a share of the phase, with their weights."""
        arm, found = self.arm, {}
        if self.projector is not None:
            schedule = arm.kv_warmup_ratio, arm.kv_decay_ratio, arm.kv_until
            found["kv"] = weight_at(arm.kv_weight, progress, *schedule) if self.train_student else 1.0
        found |= {loss.name: loss.weight(progress) for loss in self._auxiliaries}
        return {name: weight for name, weight in found.items() if weight}

    def wanted(self, progress: float) -> set[str]:
        """Names of the teacher's signals that count at a share of the phase."""
        weights = self.weights(progress)
        signals = {signal for loss in self._due(weights) for signal in loss.reads}
        return signals | {"kv"} if "kv" in weights else signals

    def _due(self, weights: Mapping[str, float]) -> list[Auxiliary]:
        return [loss for loss in self._auxiliaries if loss.name in weights]

    def compared_steps(self, steps: int) -> int:
        """In how many steps of a phase KV is compared."""
        return sum("kv" in self.weights(step / steps) for step in range(steps))

    def predict(self, batch: Batch) -> Pair:
        """Student KV and projected teacher KV of a batch, for the metrics."""
        assert self.projector is not None
        device = self.projector.student_mean.device
        ids = batch["input_ids"].to(device)
        captured, _ = capture(self.student, ids, batch["attention_mask"].to(device), self.keys)
        return Pair(captured, self.projector(teacher_kv(batch, device)), ids, batch["kv_mask"].to(device))

    def _read(self, batch: Batch, with_kv: bool, due: list[Auxiliary]) -> StudentPass:
        attention: list[tuple[Tensor, Tensor, float]] = []

        def observe(layer: int, queries: Tensor, keys: Tensor, scaling: float) -> None:
            assert layer == len(attention), f"layer {layer} attends after {len(attention)} others"
            attention.append((queries, keys, scaling))

        seen = with_kv and self.objective is not None and self.objective.attention_weight > 0
        inputs = self.student, batch["input_ids"], batch["attention_mask"], self.keys
        blocks: tuple[Tensor, ...] = ()
        with observed_attention(self.student, observe) if seen else nullcontext():
            if any(loss.blocks for loss in due):
                captured, states, last = capture_with_blocks(*inputs)
                hidden, blocks = (*states[:-1], last), states[1:]
            elif any(loss.all_layers for loss in due):
                captured, hidden = capture_with_hidden(*inputs)
            else:
                captured, last = capture(*inputs)
                hidden = (last,)
        answer, head = batch["segments"] == Segment.ANSWER, self.student.get_output_embeddings()
        return StudentPass(captured, hidden, attention, answer, head, blocks)

    def _kv(self, own: StudentPass, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Parts of the KV loss, and their sum."""
        assert self.projector is not None
        assert self.objective is not None
        projected = self.projector(KeysValues(batch["teacher_keys"], batch["teacher_values"]))
        weight = batch["kv_weight"]
        # A schedule within the loss is over when the loss is.
        share = min(1.0, self.progress / self.arm.kv_until) if self.train_student else self.progress
        found = {"kv": self.objective.distance(own.kv, projected, weight, self.projector, share)}
        total = found["kv"]
        if self.objective.attention_weight > 0:
            # In fp32, as the student's: an aligner under autocast gives bf16, and cos and sin would follow it.
            keys = projected.keys.float()
            keys = keys if self.keys == "post_rope" else rotate(self.student, keys)
            found["attention"] = self.objective.attention(own.attention, keys, batch["kv_mask"], weight)
            total = total + self.objective.attention_weight * found["attention"]
        return found | self._similarity(own.kv, projected, batch["kv_mask"]), total

    def _cross_entropy(self, hidden_BTW: Tensor, ids_BT: Tensor, label_mask_BT: Tensor) -> Tensor:
        """Logits only where there is a label: over a vocabulary of 151,936 they are the largest tensor of a step."""
        predicts = label_mask_BT[:, 1:].bool()
        head = self.student.get_output_embeddings()
        return cross_entropy(hidden_BTW[:, :-1][predicts], head, ids_BT[:, 1:][predicts])

    @torch.no_grad()
    def _similarity(self, student: KeysValues, projected: KeysValues, mask_BT: Tensor) -> dict[str, Tensor]:
        """Running cosines of the training batch, raw and with the base student's means removed, and log magnitudes."""
        assert self.projector is not None
        raw, centred, magnitude = [], [], []
        for i, (s, p) in enumerate(zip(student, projected, strict=True)):
            mean = self.projector.student_mean[i]
            raw.append(masked_mean(cosine(s.float(), p.float()), mask_BT))
            s, p = s.float() - mean, p.float() - mean
            centred.append(masked_mean(cosine(s, p), mask_BT))
            magnitude.append(masked_mean((safe_norm(s).log() - safe_norm(p).log()).square(), mask_BT))
        found = {"cos_sim": raw, "cos_sim_centered": centred, "magnitude": magnitude}
        return {name: torch.stack(values).mean() for name, values in found.items()}

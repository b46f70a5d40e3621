"""What is measured of teacher and base student before a phase: channel statistics, and CKA between their layers."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from kava.align.projector import Projector
from kava.cka import cka_matrix
from kava.kv import ChannelStatistics, KeysValues, tokens_first
from kava.losses.hidden import Hidden
from kava.models.capture import capture, capture_with_blocks
from kava.training.batches import Batch, teacher_kv

CALIBRATION_EXAMPLES = 64
# Tokens that CKA compares.
CKA_TOKENS = 2048


@torch.no_grad()
def calibrate(
    projector: Projector, student: torch.nn.Module, read: Callable[[], Iterable[Batch]], keys: str, base_student: bool
) -> None:
    """Fix the channel means that `center` and the metrics remove, and what a layer map `cka` goes by.

    Parameters
    ----------
    projector
        Takes the results.
    student
        In evaluation mode.
    read
        Gives batches over the first training examples.
    keys
        Form of the stored keys.
    base_student
        True before pretraining, when the student still is the base student whose statistics are wanted.
    """
    device = projector.student_mean.device
    statistics, output, layers = ChannelStatistics(), ChannelStatistics(), LayerFeatures()
    if base_student:
        for batch in read():
            mask, teacher = batch["kv_mask"].to(device), teacher_kv(batch, device)
            captured, _ = capture(student, batch["input_ids"].to(device), batch["attention_mask"].to(device), keys)
            statistics.add(captured, mask)
            layers.add(captured, teacher, mask)
        projector.set_student_statistics(statistics.mean, statistics.std, layers.cka())
    for batch in read():
        output.add(projector.raw(teacher_kv(batch, device)), batch["kv_mask"].to(device))
    projector.set_output_statistics(output.mean, output.std if base_student else None)


@torch.no_grad()
def calibrate_hidden(loss: Hidden, student: torch.nn.Module, read: Callable[[], Iterable[Batch]]) -> None:
    """Fix the channel means that the loss `hidden` removes.

    Parameters
    ----------
    loss
        Takes the results.
    student
        The base student, in evaluation mode.
    read
        Gives batches over the first training examples.
    """
    device = loss.student_mean.device
    own, theirs = ChannelStatistics(), ChannelStatistics()
    for batch in read():
        mask = batch["attention_mask"].to(device)
        _, (_, *blocks), _ = capture_with_blocks(student, batch["input_ids"].to(device), mask, "post_rope")
        own.add([torch.stack(blocks, 1).unsqueeze(2)], mask)
        theirs.add([batch["teacher_token_hidden"].to(device).unsqueeze(2)], mask)
    loss.student_mean.copy_(own.mean[0].flatten(1))
    loss.teacher_mean.copy_(theirs.mean[0].flatten(1))


class LayerFeatures:
    """Features of the same tokens in both models, per layer, for CKA."""

    def __init__(self) -> None:
        self._sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._tokens = 0

    def add(self, student: KeysValues, teacher: KeysValues, mask_BT: Tensor) -> None:
        if self._tokens >= CKA_TOKENS:
            return
        chosen = mask_BT.bool()
        for side, kv in zip(self._sides, (student, teacher), strict=True):
            rows = [tokens_first(tensor)[chosen].flatten(2) for tensor in kv]  # [N, L, H · D]
            side.append(torch.stack(rows)[:, : CKA_TOKENS - self._tokens].float())
        self._tokens += int(chosen.sum())

    def cka(self) -> Tensor:
        """`[2, L_s, L_t]`, keys and values."""
        student, teacher = (torch.cat(side, dim=1).transpose(1, 2) for side in self._sides)
        return torch.stack([cka_matrix(s, t) for s, t in zip(student, teacher, strict=True)]).float()

"""The largest batch that a step may meet: every example as long as allowed, almost every token with a label."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from kava.config.arms import Arm
from kava.data.tokens import Segment
from kava.training.batches import PADDING
from kava.training.signals import signals_of
from kava.training.signals.base import TeacherShape


def masks(examples: int, tokens: int, prompt: int = 1, answer: int | None = None) -> dict[str, Tensor]:
    """Real tensors of a `Batch`, `[B, T]`: ids, masks and segments, with their values also in fake mode.

    The last row ends in one token of padding, since attention without any takes another and cheaper path. `prompt` and
    `answer` are the task's shortest and longest (`kava.tasks.base.Lengths`); what stands between them is reasoning.
    """
    with unset_fake_temporarily():
        return _masks(examples, tokens, prompt, answer)


def _masks(examples: int, tokens: int, prompt: int, answer: int | None) -> dict[str, Tensor]:
    prompt = min(prompt, tokens // 2)
    segments = torch.full((examples, tokens), int(Segment.REASONING))
    segments[:, :prompt] = Segment.PROMPT
    segments[:, -(tokens - prompt if answer is None else max(1, min(answer, tokens // 4))) :] = Segment.ANSWER
    attention = torch.ones(examples, tokens, dtype=torch.int64)
    attention[-1, -1] = 0
    return {
        "input_ids": torch.zeros(examples, tokens, dtype=torch.int64),
        "attention_mask": attention,
        "label_mask": ((segments != Segment.PROMPT) & attention.bool()).long(),
        "segments": segments.masked_fill(attention == 0, PADDING),
        "kv_mask": attention.clone(),
        "kv_weight": attention.float(),
    }


def teacher_side(arm: Arm, real: dict[str, Tensor], teacher: TeacherShape) -> dict[str, Tensor]:
    """What an arm's batch holds of the teacher; made in the mode that is active, so fake in fake mode.

    Parameters
    ----------
    arm
        Whose losses read.
    real
        Of `masks`.
    teacher
        Shapes of its side.
    """
    with unset_fake_temporarily():
        later = real["segments"][:, 1:]
        predicted = {segment.name.lower(): int((later == segment).sum()) for segment in Segment}
    rows, tokens = real["input_ids"].shape
    found: dict[str, Tensor] = {}
    for signal in signals_of(arm):
        found |= signal.largest(teacher, rows, tokens, predicted)
    return found

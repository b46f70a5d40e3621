"""The largest batch that a step may meet: every example as long as allowed, almost every token with a label."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from kava.data.tokens import Segment
from kava.kv import Geometry
from kava.training.batches import PADDING


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


def teacher_side(
    arm: dict[str, Any], real: dict[str, Tensor], teacher: Geometry, width: int, codec: str, top: int
) -> dict[str, Tensor]:
    """What an arm's batch holds of the teacher; made in the mode that is active, so fake in fake mode.

    Parameters
    ----------
    arm
        Settings of the arm, as JSON values.
    real
        Of `masks`.
    teacher, width
        KV geometry and width of the hidden states.
    codec
        Kind of the store's codec; `bf16` alone decodes to bfloat16.
    top
        Logits kept per answer token.
    """
    examples, tokens = real["input_ids"].shape
    auxiliary, found = arm["auxiliary"], {}
    if arm["aligner"] or auxiliary["cka"]:
        dtype = torch.bfloat16 if codec == "bf16" else torch.float32
        shape = (examples, tokens, teacher.layers, teacher.kv_heads, teacher.head_dim)
        for name in ("teacher_keys", "teacher_values"):
            found[name] = torch.zeros(shape, dtype=dtype).permute(0, 2, 3, 1, 4)
    if auxiliary["codi"]:
        found["teacher_hidden"] = torch.zeros(examples, teacher.layers + 1, width)
    if auxiliary["logit_kd"]:
        with unset_fake_temporarily():
            answers = int((real["segments"][:, 1:] == Segment.ANSWER).sum())
        found["topk_ids"] = torch.zeros(answers, top, dtype=torch.int64)
        found["topk_logprobs"] = torch.zeros(answers, top)
    return found

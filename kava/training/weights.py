"""How much each token counts in the KV loss, and whether a token set and a store serve an arm at all."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kava.data.tokens import Segment, TokenSet
from kava.errors import UserError
from kava.store.reader import StoreReader

Arrays = Sequence[np.ndarray]


def relative_importance(importance: Tensor) -> Tensor:
    """Weights of an example's tokens from their importance.

    Parameters
    ----------
    importance
        Float32 `[T]`, NaN for tokens that were not scored.

    Returns
    -------
    Tensor
        `[T]`, with mean 1 over the scored tokens and 1 for the others; 1 everywhere if no token is of importance.
    """
    scored = ~importance.isnan()
    mean = importance[scored].sum() / scored.sum().clamp(min=1)
    return torch.where(scored, importance / mean, 1.0) if mean > 0 else torch.ones_like(importance)


def segments_compared(segments: np.ndarray, names: list[str]) -> Tensor:
    """1 for the tokens of named segments, else 0: float32 `[T]`."""
    chosen = [Segment[name.upper()] for name in names]
    return torch.from_numpy(np.isin(segments, chosen)).float()


def check_store(store: StoreReader, split: str, ids: Arrays, reads_kv: bool) -> None:
    """Raise `UserError` for a store that is of other examples, or whose KV cannot teach token by token."""
    if reads_kv and store.scope == "head":
        raise UserError(
            "the store keeps other tokens in each layer and head, and distillation compares KV token by token; set "
            "scope: example in the selection"
        )
    for example in {0, len(ids) // 2, len(ids) - 1}:
        info = store.tokens(split, example)
        position = info.position.cpu().numpy()
        if position.max() >= len(ids[example]) or (ids[example][position] != info.id.cpu().numpy()).any():
            raise UserError(
                f"{split} example {example} has other tokens in the store than in the token set: they are of other data"
            )


def check_warp(store: StoreReader, split: str, teacher: Arrays, student: Arrays) -> None:
    """Raise `UserError` where teacher KV cannot be laid onto the student's tokens.

    Parameters
    ----------
    teacher, student
        Segments of the examples whose KV is read, and of those that it is laid onto.
    """
    if not store.keeps_every_token:
        raise UserError(
            "student_reasoning: equations interpolates between neighbouring tokens, and the selection drops some; set "
            "kv.select: {kind: full} and no select in the arm"
        )
    for example, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
        alone = np.setdiff1d(ours, theirs)
        if alone.size:
            raise UserError(
                f"the student reads {Segment(alone[0]).name.lower()} in {split} example {example} where the teacher "
                "has none whose KV it could be given; drop the example from the data"
            )


def check_answers(tokens: TokenSet, split: str) -> None:
    """Raise `UserError` where the teacher's logits are of other answer tokens than the student's."""
    teacher = zip(tokens.input_ids[split], tokens.segments[split], strict=True)
    student = zip(tokens.student_ids[split], tokens.student_segments[split], strict=True)
    for example, pair in enumerate(zip(teacher, student, strict=True)):
        theirs, ours = (ids[segments == Segment.ANSWER] for ids, segments in pair)
        if not np.array_equal(theirs, ours):
            raise UserError(
                f"the answer of {split} example {example} is {len(ours)} tokens for the student and {len(theirs)} for "
                "the teacher, or others, so that logits cannot be compared; remove auxiliary.logit_kd, or drop the "
                "example from the data"
            )


def no_weight(split: str, example: int, arm: dict[str, Any]) -> UserError:
    """What to tell of an example without a token to compare."""
    return UserError(
        f"{split} example {example} has no token that the KV loss could compare: segments {arm['segments']} with "
        f"select {arm['select']}, loss.weights {arm['loss']['weights']} and teacher_kv {arm['teacher_kv']} leave "
        "none; name more segments, or keep more tokens"
    )

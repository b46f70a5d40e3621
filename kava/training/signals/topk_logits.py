"""`topk_logits`: the teacher's most probable tokens where it predicts the answer."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from kava.data.tokens import Segment, TokenSet
from kava.errors import UserError
from kava.training.signals.base import Signal, StoredSplit, TeacherShape


class TopkLogits(Signal):
    """`topk_ids` and `topk_logprobs`, `[N, K]`, int64 and float32: a row per answer token of the batch, row by row."""

    name = "topk_logits"

    def __init__(self, stored: StoredSplit) -> None:
        super().__init__(stored)
        check_answers(stored.tokens, stored.split)

    def read(self, examples: list[int], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        del batch
        store, split = self.stored.store, self.stored.split
        ids, logprobs = zip(*(store.topk_logits(split, example) for example in examples), strict=True)
        return {"topk_ids": torch.cat(ids).long(), "topk_logprobs": torch.cat(logprobs).float()}

    @staticmethod
    def largest(teacher: TeacherShape, rows: int, tokens: int, answers: int) -> dict[str, Tensor]:
        del rows, tokens
        ids = torch.zeros(answers, teacher.top, dtype=torch.int64)
        return {"topk_ids": ids, "topk_logprobs": torch.zeros(answers, teacher.top)}


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

"""`topk_logits`: the teacher's most probable tokens where it predicts the answer, or every token with a label."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from kava.data.tokens import TokenSet, of_segments
from kava.errors import UserError
from kava.training.signals.base import Signal, StoredSplit, TeacherShape


class TopkLogits(Signal):
    """`topk_ids` and `topk_logprobs`, `[N, K]`, int64 and float32, and `topk_from`, int64 `[N]`.

    A row per token of the batch that is in the store's `topk_segments`, example by example; `topk_from` is the place
    of the token before it, which predicts it, among all B · T of the padded batch.
    """

    name = "topk_logits"

    def __init__(self, stored: StoredSplit) -> None:
        super().__init__(stored)
        named = stored.store.contents.signals.topk_segments
        self._predicted = predicted_tokens(stored.tokens, stored.split, named)

    def read(self, examples: list[int], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        store, split, tokens = self.stored.store, self.stored.split, batch["input_ids"].shape[1]
        ids, logprobs = zip(*(store.topk_logits(split, example) for example in examples), strict=True)
        places = [row * tokens + self._predicted[example] - 1 for row, example in enumerate(examples)]
        return {
            "topk_ids": torch.cat(ids).long(),
            "topk_logprobs": torch.cat(logprobs).float(),
            "topk_from": torch.from_numpy(np.concatenate(places)),
        }

    def counts(self, examples: list[int]) -> dict[str, float]:
        return {"predicted": float(sum(len(self._predicted[example]) for example in examples))}

    @staticmethod
    def largest(teacher: TeacherShape, rows: int, tokens: int, predicted: Mapping[str, int]) -> dict[str, Tensor]:
        del rows, tokens
        count = sum(predicted[segment] for segment in teacher.topk_segments)
        ids = torch.zeros(count, teacher.top, dtype=torch.int64)
        places = torch.arange(count)
        return {"topk_ids": ids, "topk_logprobs": torch.zeros(count, teacher.top), "topk_from": places}


def predicted_tokens(tokens: TokenSet, split: str, segments: Sequence[str]) -> list[np.ndarray]:
    """Positions of the tokens of named segments in each example, int64.

    Raises
    ------
    UserError
        The teacher's logits are of other tokens than the student's.
    """
    teacher = zip(tokens.input_ids[split], tokens.segments[split], strict=True)
    student = zip(tokens.student_ids[split], tokens.student_segments[split], strict=True)
    found = []
    for example, pair in enumerate(zip(teacher, student, strict=True)):
        theirs, ours = (ids[of_segments(of_tokens, segments)] for ids, of_tokens in pair)
        if not np.array_equal(theirs, ours):
            raise UserError(
                f"the {' and '.join(segments)} of {split} example {example} is {len(ours)} tokens for the student and "
                f"{len(theirs)} for the teacher, or others, so that logits cannot be compared; remove "
                "auxiliary.logit_kd, or drop the example from the data"
            )
        found.append(np.flatnonzero(of_segments(pair[1][1], segments)))
    return found

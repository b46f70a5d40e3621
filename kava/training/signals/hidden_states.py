"""`hidden_states`: those of all layers at the last token before the answer."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kava.training.signals.base import Signal, TeacherShape


class HiddenStates(Signal):
    """`teacher_hidden`, float32 `[B, L_t + 1, W_t]`; of the example itself, whoever gives its KV."""

    name = "hidden_states"

    def read(self, examples: list[int], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        del batch
        store, split = self.stored.store, self.stored.split
        return {"teacher_hidden": torch.stack([store.hidden_states(split, example).float() for example in examples])}

    @staticmethod
    def largest(teacher: TeacherShape, rows: int, tokens: int, predicted: Mapping[str, int]) -> dict[str, Tensor]:
        del tokens, predicted
        return {"teacher_hidden": torch.zeros(rows, teacher.geometry.layers + 1, teacher.width)}

"""`token_hidden_states`: those of every token behind the teacher layer of each student layer."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kava.errors import UserError
from kava.training.signals.base import Signal, StoredSplit, TeacherShape


class TokenHiddenStates(Signal):
    """`teacher_token_hidden`, bfloat16 `[B, L_s, T, W_t]`, 0 at padding; of the example itself, whoever gives KV."""

    name = "token_hidden_states"

    def __init__(self, stored: StoredSplit) -> None:
        super().__init__(stored)
        tokens, split, arm = stored.tokens, stored.split, stored.arm
        assert arm, "the metrics read no hidden states"
        assert arm.auxiliary.hidden, "of which layers is a setting of the loss"
        assert arm.auxiliary.hidden.layers, "`with_layers` says which"
        self._layers = arm.auxiliary.hidden.layers
        if tokens.student_ids[split] is not tokens.input_ids[split]:
            raise UserError(
                "auxiliary.hidden compares token by token, and the student reads fewer than the teacher; set "
                "student_reasoning: full"
            )

    def read(self, examples: list[int], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        store, split, shape = self.stored.store, self.stored.split, batch["input_ids"].shape
        width = store.contents.hidden_width
        padded = torch.zeros(*shape, len(self._layers), width, dtype=torch.bfloat16, device=store.device)
        for row, example in enumerate(examples):
            states = store.token_hidden_states(split, example, self._layers)
            padded[row, : len(states)] = states
        return {"teacher_token_hidden": padded.transpose(1, 2)}

    @staticmethod
    def largest(teacher: TeacherShape, rows: int, tokens: int, predicted: Mapping[str, int]) -> dict[str, Tensor]:
        del predicted
        shape = (rows, tokens, len(teacher.token_hidden_states), teacher.width)
        return {"teacher_token_hidden": torch.zeros(shape, dtype=torch.bfloat16).transpose(1, 2)}

"""What a signal of the teacher is: tensors of a batch that losses read by its name."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from torch import Tensor

from kava.config.arms import Arm
from kava.data.tokens import TokenSet
from kava.errors import UserError
from kava.kv import Geometry
from kava.store.reader import StoreReader
from kava.training.order import partners


@dataclass(frozen=True)
class StoredSplit:
    """Where the signals of a split's examples lie.

    Attributes
    ----------
    store
        Sealed teacher store over the token set.
    tokens, split
        The examples.
    arm
        Whose losses read; None to compare all tokens alike, as the metrics do.
    shuffle_seed
        Give each example the KV of another one of like length; None for its own.
    """

    store: StoreReader
    tokens: TokenSet
    split: str
    arm: Arm | None = None
    shuffle_seed: int | None = None

    @cached_property
    def source(self) -> list[int]:
        """For each example, the one whose KV it gets."""
        lengths = self.tokens.lengths(self.split)
        return list(range(len(lengths))) if self.shuffle_seed is None else partners(lengths, self.shuffle_seed)

    def check(self, token_by_token: bool) -> None:
        """Raise `UserError` for a store that is of other examples, or whose KV cannot be compared token by token."""
        if token_by_token and self.store.scope == "head":
            raise UserError(
                "the store keeps other tokens in each layer and head, and distillation compares KV token by token; set "
                "scope: example in the selection"
            )
        ids = self.tokens.input_ids[self.split]
        for example in {0, len(ids) // 2, len(ids) - 1}:
            info = self.store.tokens(self.split, example)
            position = info.position.cpu().numpy()
            if position.max() >= len(ids[example]) or not np.array_equal(ids[example][position], info.id.cpu().numpy()):
                raise UserError(
                    f"{self.split} example {example} has other tokens in the store than in the token set: they are of "
                    "other data"
                )


@dataclass(frozen=True)
class TeacherShape:
    """What a step needs to know of the teacher's side: KV geometry, hidden width, codec's kind, stored logits.

    `prompt` and `answer` are lengths as `kava.plan.example.masks` takes them; `topk_segments` and `token_hidden_states`
    are as in `Signals`, but that of a step's batch the latter are the layers of its arm.
    """

    geometry: Geometry
    width: int
    codec: str = "bf16"
    top: int = 0
    topk_segments: Sequence[str] = ("answer",)
    token_hidden_states: Sequence[int] = ()
    keys: str = "pre_rope"
    prompt: int = 1
    answer: int | None = None


class Signal(ABC):
    """One thing of the teacher, for the examples of a split.

    Parameters
    ----------
    stored
        Where it lies.

    Raises
    ------
    UserError
        It cannot serve the arm.
    """

    name: ClassVar[str]

    def __init__(self, stored: StoredSplit) -> None:
        self.stored = stored

    @abstractmethod
    def read(self, examples: list[int], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that it adds to the batch of these examples, which holds the student's side."""

    def counts(self, examples: list[int]) -> dict[str, float]:
        """What losses are means over and the signal alone knows of."""
        del examples
        return {}

    @staticmethod
    @abstractmethod
    def largest(teacher: TeacherShape, rows: int, tokens: int, predicted: Mapping[str, int]) -> dict[str, Tensor]:
        """Zeros in the shapes of what `read` gives for so many rows of so many tokens.

        `predicted` is how many of them, in all rows, are in each segment and have a token before them.
        """


class TeacherSignals:
    """What the losses of an arm read of the teacher: from a store, from a live teacher, or each from elsewhere."""

    def __init__(self, signals: Iterable[Signal] = ()) -> None:
        self.by_name = {signal.name: signal for signal in signals}

    def add_to(self, batch: dict[str, Tensor], examples: list[int], wanted: Iterable[str] | None) -> None:
        """Put the wanted signals into a batch, all of them for None."""
        for name, signal in self.by_name.items():
            if wanted is None or name in wanted:
                batch.update(signal.read(examples, batch))

    def counts(self, examples: list[int]) -> dict[str, float]:
        """See `Signal.counts`."""
        return {name: value for signal in self.by_name.values() for name, value in signal.counts(examples).items()}

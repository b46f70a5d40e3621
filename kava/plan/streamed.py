"""What an extraction takes of the GPU when the teacher's weights come from the disk, layer after layer."""

from functools import cache
from itertools import pairwise
from typing import Literal, Protocol, Self, TypeVar

import torch

from kava.config.models import Teacher
from kava.models.cut import cut_config
from kava.models.load_streamed import STREAMED
from kava.plan.geometry import read_geometry
from kava.plan.memory import StageMemory
from kava.plan.resident import quantised_bytes
from kava.plan.trace import layer_counts, trace_forward

Placement = Literal["resident", "streamed"]


class OfTeacher(Protocol):
    """A need of a stage whose teacher may be streamed."""

    @property
    def teacher(self) -> Teacher:
        """Its settings."""

    def at(self, placement: Placement) -> Self:
        """With the teacher placed there."""

    def memory(self) -> StageMemory:
        """Bytes at the peak."""


P = TypeVar("P", bound=OfTeacher)


def streamed_parts(
    teacher: Teacher, rows: int, tokens: int, keys: str | None, head: bool, wave: int, hidden: bool = False
) -> dict[str, int]:
    """Parts of the peak of forwards of a streamed teacher, by name of `kava.plan.memory.PARTS`.

    Two of what is read together (embeddings, a layer, the head) are there at once, since one is read while the other
    computes; of a wave's tokens, the hidden states wait.

    Parameters
    ----------
    teacher
        Its model and how it is loaded.
    rows, tokens
        Of a batch.
    keys
        As of `trace_forward`.
    head, hidden
        Whether the head is used, and whether the hidden states of all layers are.
    wave
        Tokens that go together.
    """
    config = read_geometry(teacher)
    stations, used = _stations(teacher, rows * tokens, head)
    waiting = wave * config.hidden_size * getattr(torch, teacher.dtype).itemsize
    waiting *= config.num_hidden_layers + 1 if hidden else 1
    forward = dict(_forward_of_one_layer(teacher, rows, tokens, keys))
    return forward | {
        "weights": max(first + second for first, second in pairwise(stations)),
        "activations": forward.get("activations", 0) + waiting,
        "temporary": forward.get("temporary", 0) + used,
    }


def settle(need: P, budget_gib: float) -> P:
    """With the teacher placed: as it is configured, or for `auto` in memory if it fits and else streamed."""
    if need.teacher.placement != "auto":
        return need
    resident, streamed = (need.at(place) for place in ("resident", "streamed"))
    known = read_geometry(need.teacher).model_type in STREAMED
    return resident if resident.memory().fits(budget_gib) or not known else streamed


def _stations(teacher: Teacher, tokens: int, head: bool) -> tuple[list[int], int]:
    """Bytes of the modules whose weights come and go, in their order, and what a matrix of a layer takes in use."""
    config = read_geometry(teacher)
    layer, used = quantised_bytes(layer_counts(config), teacher, teacher.dtype, tokens)
    vocabulary = config.vocab_size * config.hidden_size * getattr(torch, teacher.dtype).itemsize
    return [vocabulary, *[layer] * config.num_hidden_layers, *([vocabulary] if head else [])], used


@cache
def _forward_of_one_layer(teacher: Teacher, rows: int, tokens: int, keys: str | None) -> tuple[tuple[str, int], ...]:
    config = cut_config(read_geometry(teacher), [0])
    parts = trace_forward(config, getattr(torch, teacher.dtype), rows, tokens, keys).parts
    return tuple((name, count) for name, count in parts.items() if name != "weights")

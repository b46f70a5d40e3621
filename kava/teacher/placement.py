"""Where the teacher's weights lie while it reads the data: in memory, or on the disk, layer after layer."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from kava.config.models import Teacher
from kava.models.load import load_teacher
from kava.models.streamed import StreamedModel

log = logging.getLogger("kava")

T = TypeVar("T")


class Forwards(Protocol):
    """Runs functions that use the model, and gives their results in their order."""

    def __call__(self, calls: Iterable[Callable[[], T]], /) -> Iterator[T]: ...


@dataclass(frozen=True)
class Placed:
    """The teacher, and how its forwards run.

    Attributes
    ----------
    model
        A causal language model of `transformers`.
    device
        Where it computes.
    forwards
        One after the other, or all together.
    shards
        How many go together; with more, streamed weights are read less often, and more waits in memory.
    streamed
        The model's own, where its weights come from the disk.
    """

    model: Any
    device: torch.device
    forwards: Forwards
    shards: int = 1
    streamed: StreamedModel | None = None

    def cost(self) -> dict[str, float]:
        """Of streamed weights: seconds in which they were waited for, and bytes that were read."""
        if self.streamed is None:
            return {}
        return {"weights_waited_seconds": self.streamed.waited, "weights_read_bytes": self.streamed.read_bytes}

    @property
    def offload(self) -> bool:
        """Whether KV is brought to the CPU layer by layer."""
        return self.streamed is not None


def resident(model: Any) -> Placed:
    """A teacher that is in memory."""
    return Placed(model, model.device, in_turn)


def in_turn(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Run each function when its result is wanted."""
    return (call() for call in calls)


def place(source: Teacher, device: torch.device, head: bool, shard_tokens: int) -> Placed:
    """Load the teacher.

    Parameters
    ----------
    source
        `placement` is `streamed`, or the weights are kept in memory.
    device
        Where it computes.
    head
        Whether the head will be used.
    shard_tokens
        Tokens of a shard.
    """
    if source.placement != "streamed":
        return resident(load_teacher(source, device))
    from kava.models.load_streamed import stream_teacher

    streamed = stream_teacher(source, device, head)
    together = max(1, source.wave_tokens // shard_tokens)
    log.info("the teacher is streamed: every %d shards, its weights are read anew", together)
    return Placed(streamed.model, device, streamed.forwards, together, streamed)

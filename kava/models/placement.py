"""Where a model's weights lie while it reads, in memory or on the disk, and how its forwards run."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """A model, and how its forwards run.

    Attributes
    ----------
    model
        A causal language model of `transformers`.
    device
        Where it computes.
    forwards
        One after the other, or all together.
    wave_tokens
        How many share one pass over streamed weights: with more, they are read less often, and more waits in memory.
    streamed
        The model's own, where its weights come from the disk.
    """

    model: Any
    device: torch.device
    forwards: Forwards
    wave_tokens: int = 0
    streamed: StreamedModel | None = None

    def run(self, calls: Sequence[Callable[[], T]], tokens: Sequence[int]) -> Iterator[T]:
        """Results of functions whose forwards read so many tokens each, in waves; one alone may be larger than that."""
        if self.streamed is None:
            yield from self.forwards(calls)
            return
        wave: list[Callable[[], T]] = []
        inside = 0
        for call, count in zip(calls, tokens, strict=True):
            if wave and inside + count > self.wave_tokens:
                yield from self.forwards(wave)
                wave, inside = [], 0
            wave.append(call)
            inside += count
        if wave:
            yield from self.forwards(wave)

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
    """A model that is in memory."""
    return Placed(model, model.device, in_turn)


def in_turn(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Run each function when its result is wanted."""
    return (call() for call in calls)


def place(source: Teacher, device: torch.device, head: bool) -> Placed:
    """Load the teacher.

    Parameters
    ----------
    source
        `placement` is `streamed`, or the weights are kept in memory.
    device
        Where it computes.
    head
        Whether the head will be used.
    """
    if source.placement != "streamed":
        return resident(load_teacher(source, device))
    from kava.models.load_streamed import stream_teacher

    streamed = stream_teacher(source, device, head)
    log.info("the teacher is streamed: its weights are read from the disk every %d tokens", source.wave_tokens)
    return Placed(streamed.model, device, streamed.forwards, source.wave_tokens, streamed)

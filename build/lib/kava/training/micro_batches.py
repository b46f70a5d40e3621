"""What each optimizer step reads: its examples in micro-batches, which are read ahead of their use."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kava.training.batches import Batch
from kava.training.prefetch import Prefetch


class Part(NamedTuple):
    """Examples of one micro-batch, and the optimizer step that they belong to."""

    step: int
    examples: list[int]


class MicroBatch(NamedTuple):
    """A batch, and which share of its optimizer step it is: of the labels, of the KV weight, and so on."""

    batch: Batch
    shares: dict[str, float]


class MicroBatches:
    """Micro-batches of one optimizer step after the other.

    Losses are means over what a whole optimizer step holds. A micro-batch gives the mean over its own labels and
    tokens; weighed by its share of the step's, these add up to the same for every size, and on every number of
    processes.

    Parameters
    ----------
    read
        Loads a part; called in a background thread.
    counts
        What examples hold together: labels, weight of the KV loss, and so on, by name.
    order
        Examples of the whole run.
    per_step
        Of which each optimizer step takes so many.
    size
        Examples per forward; `per_step` is a multiple of it.
    rank, world
        Of this process, among how many that share each step's micro-batches in turn.
    """

    def __init__(
        self,
        read: Callable[[Part], Batch],
        counts: Callable[[list[int]], dict[str, float]],
        order: Sequence[int],
        per_step: int,
        size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        assert per_step % (size * world) == 0, f"{per_step} examples cannot be shared as {world} times {size}"
        self._read, self._counts, self._order, self.examples_per_step = read, counts, order, per_step
        self.size, self._rank, self._world = size, rank, world
        self._prefetch: Prefetch[MicroBatch] | None = None
        self._next = 0
        self._waited = 0.0

    @property
    def per_step(self) -> int:
        """Micro-batches that this process has in each step."""
        return self.examples_per_step // (self.size * self._world)

    def of_step(self, step: int) -> Iterator[MicroBatch]:
        """The micro-batches of a step; those of the steps after it are read meanwhile."""
        if self._prefetch is None or self._next != step:
            self.close()
            parts = (
                part for later in range(step, len(self._order) // self.examples_per_step) for part in self._parts(later)
            )
            self._prefetch = Prefetch(self._load, parts)
        # Until the step is over: one that is given up is read again.
        self._next = -1
        for _ in range(self.per_step):
            yield next(self._prefetch)
        self._next = step + 1

    def resize(self, size: int) -> None:
        """From now on so many examples per forward; what was read ahead is dropped."""
        self.close()
        self.size = size

    def take_waited(self) -> float:
        """Seconds that were waited for batches since the last call."""
        waited = self._waited + (self._prefetch.waited if self._prefetch else 0.0)
        self._waited = 0.0
        if self._prefetch:
            self._prefetch.waited = 0.0
        return waited

    def close(self) -> None:
        """End the reading thread."""
        if self._prefetch:
            self._prefetch.close()
            self._waited += self._prefetch.waited
            self._prefetch = None

    def _parts(self, step: int) -> list[Part]:
        examples = self._of(step)
        parts = [Part(step, examples[first : first + self.size]) for first in range(0, len(examples), self.size)]
        return parts[self._rank :: self._world]

    def _of(self, step: int) -> list[int]:
        return list(self._order[step * self.examples_per_step : (step + 1) * self.examples_per_step])

    def _load(self, part: Part) -> MicroBatch:
        whole, own = self._counts(self._of(part.step)), self._counts(part.examples)
        return MicroBatch(self._read(part), {name: own[name] / whole[name] if whole[name] else 0.0 for name in whole})

"""Results of a function, computed in one background thread before they are asked for."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Generic, TypeVar

# One result ready and one in the making level out examples of unlike length; each further one takes memory, on the
# GPU too: 59 MB for 2 × 512 tokens of the reference teacher, 14,336 values each, in fp32.
AHEAD = 2

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterator over `load(item)` for each item, in order, at most `AHEAD` results ahead of the caller.

    One thread, not the worker processes of a `DataLoader`: each of those would hold its own copy of a store that lies
    in memory, and a process forked while Zarr's threads hold locks may never get them. Decompression and array
    arithmetic run outside Python's global lock, so that a thread does overlap. Items are drawn in the caller's thread:
    a data loader draws from the global random number generator, whose order must not depend on timing.

    An exception of `load` is raised where its result was due, itself and not a copy.

    Parameters
    ----------
    load
        Called in the background, for one item at a time.
    items
        What to load.

    Attributes
    ----------
    waited
        Seconds that the caller has waited for results; it may be set back.
    """

    def __init__(self, load: Callable[[Any], T], items: Iterable[Any]) -> None:
        self.items, self.waited = items, 0.0
        self._load, self._remaining = load, iter(items)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pending: deque[Future[T]] = deque()
        self._submit(AHEAD)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self._submit(1)
        if not self._pending:
            self.close()
            raise StopIteration
        started = time.monotonic()
        try:
            return self._pending.popleft().result()
        finally:
            self.waited += time.monotonic() - started

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop what was not asked for and end the thread, after the result that it is computing."""
        self._pool.shutdown(cancel_futures=True)
        self._pending.clear()

    def _submit(self, count: int) -> None:
        for item in islice(self._remaining, count):
            self._pending.append(self._pool.submit(self._load, item))

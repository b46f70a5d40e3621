"""Bytes of the tensors that are alive, from the operators that make and read them."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """While active, counts the storages that this thread's operators read or make, until they are dropped.

    The resident set of a process is too coarse: it holds libraries and what the allocator keeps. A tensor of another
    thread counts from its first use here: a batch that was read ahead is not seen while it waits.

    Attributes
    ----------
    bytes, peak
        Alive now, and at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self._see((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._see(result)
        return result

    def _see(self, values: Any) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._add(tensor.untyped_storage())

    def _add(self, storage: Any) -> None:
        key, count = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def drop(_: Any) -> None:
            del self._known[key]
            self.bytes -= count

        self._known[key] = weakref.ref(storage, drop)
        self.bytes += count
        self.peak = max(self.peak, self.bytes)

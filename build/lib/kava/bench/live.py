"""Bytes of the tensors that are alive, from the operators that make and read them."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from kava.plan.live import LiveBytes


class LiveTensors(LiveBytes):
    """While active, counts what this thread's operators read or make.

    The resident set of a process is too coarse: it holds libraries and what the allocator keeps. A tensor of another
    thread counts from its first use here: a batch that was read ahead is not seen while it waits.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self._see((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._see(result)
        return result

    def _see(self, values: Any) -> None:
        self.own((x for x in tree_leaves(values) if isinstance(x, Tensor) and x.device.type != "meta"), "tensors")

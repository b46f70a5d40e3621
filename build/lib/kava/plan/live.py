"""Bytes of the tensors that live while a step runs, by what they are for."""

import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
ASKS_FOR_DEVICE = torch.ops.prim.device.default


class LiveBytes(TorchDispatchMode):
    """Counts storages until they are dropped, by category; what is counted is up to who derives from it.

    Attributes
    ----------
    peak
        Most bytes alive at once.
    at_peak
        Category → bytes alive at that moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._live: dict[int, tuple[weakref.ref[Any], int, str]] = {}
        self._totals: Counter[str] = Counter()

    @property
    def bytes(self) -> int:
        """Alive now."""
        return self._totals.total()

    def own(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count tensors; of those that share a storage, one."""
        for tensor in tensors:
            self._add(tensor, category)

    def _add(self, tensor: Tensor, category: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        count = storage.nbytes()

        def drop(_: Any) -> None:
            self._totals[category] -= self._live.pop(key)[1]

        self._live[key] = (weakref.ref(storage, drop), count, category)
        self._totals[category] += count
        if self.bytes > self.peak:
            self.peak, self.at_peak = self.bytes, dict(self._totals)


class StepBytes(LiveBytes):
    """Counts what operators make and drop; works on real and on fake tensors.

    On fake tensors, operators that see real tensors alone run for real: masks and ids keep their values, so that code
    which asks for them (how many tokens have a label?) gets an answer.

    Parameters
    ----------
    vocabulary
        Size of the vocabulary: a tensor with a last dimension of that size counts as `logits`.

    Attributes
    ----------
    phase
        Category of what is made now, `activations` in a forward, `temporary` in a backward.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.phase = "activations"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is ASKS_FOR_DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two thirds of all calls, which would take a quarter of the time
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        fake = [x for x in inputs if isinstance(x, FakeTensor)]
        if fake and len(fake) < len(inputs) and func in INDEXING:
            args = (args[0], _as_positions(args[1]), *args[2:])
        if func is aten.add.Tensor and self.phase == "temporary" and self._is_of_vocabulary(*inputs):
            self._count_as_reused(inputs[0])
        with unset_fake_temporarily() if inputs and not fake else nullcontext():
            result = func(*args, **(kwargs or {}))
        for tensor in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor, self._category(func, tensor, inputs))
        return result

    def _category(self, func: Any, tensor: Tensor, inputs: list[Tensor]) -> str:
        if func is aten._to_copy.default and self._of(inputs[0]) in ("weights", "projector"):
            return "autocast copies"
        return "logits" if tensor.shape[-1:] == (self.vocabulary,) else self.phase

    def _is_of_vocabulary(self, *tensors: Tensor) -> bool:
        return all(tensor.dim() == 2 and tensor.shape[0] == self.vocabulary for tensor in tensors)

    def _count_as_reused(self, tensor: Tensor) -> None:
        """Two gradients of a tied matrix: autograd adds the second to the first, unless somebody watches it."""
        key = tensor.untyped_storage()._cdata
        reference, count, category = self._live[key]
        self._totals[category] -= count
        self._live[key] = reference, 0, category

    def _of(self, tensor: Tensor) -> str | None:
        known = self._live.get(tensor.untyped_storage()._cdata)
        return known[2] if known else None


def _as_positions(indices: Any) -> list[Tensor | None]:
    """Masks as the positions they mean: how many there are cannot be known of a fake tensor."""
    positions: list[Tensor | None] = []
    with unset_fake_temporarily():
        for index in indices:
            if isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor):
                positions += index.nonzero().unbind(1)
            else:
                positions.append(index)
    return positions

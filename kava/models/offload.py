"""A cache that brings what it is given to the CPU, layer by layer."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicCache


class OffloadedCache(DynamicCache):
    """Gives attention a layer's keys and values where it computes, and keeps them on the CPU, for one forward.

    Parameters
    ----------
    stored
        Keys `[B, H, T, D]` as attention reads them → as they are kept, computed before they leave the device; None to
        keep them as they are.
    """

    def __init__(self, stored: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self._stored = stored

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        read: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer, (keys, values) = self.layers[layer_idx], read
        layer.keys, layer.values = (self._stored(keys) if self._stored else keys).cpu(), values.cpu()
        return read

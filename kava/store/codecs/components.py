"""Principal components of KV over layers and heads, quantised and packed."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from kava.store.array_spec import ArraySpec
from kava.store.codecs.allocation import quantise_components
from kava.store.codecs.symbols import ALPHABETS, Alphabet

# Fine tokens get a second symbol per component, a fifth of a step.
FINE: Final = Alphabet(5, 3)
FINE_ARRAY: Final = "components/fine"


@dataclass(frozen=True)
class Components:
    """The components that are stored, those of one alphabet side by side.

    Attributes
    ----------
    scale
        What each head is divided by, fp32 `[heads]`, heads = layers × {K, V} × KV heads; infinite for a constant head.
    bases
        Per block of channels: orthonormal columns, fp16 `[channels of the block, components of the block]`.
    block, step, per_byte
        Per component `[r]`: its block, the step of its quantiser, and its alphabet, by symbols per byte.
    """

    scale: Tensor
    bases: tuple[Tensor, ...]
    block: Tensor
    step: Tensor
    per_byte: Tensor

    def __len__(self) -> int:
        return len(self.step)

    @property
    def channels(self) -> int:
        return sum(len(basis) for basis in self.bases)

    @property
    def channel_scale(self) -> Tensor:
        return self.scale.repeat_interleave(self.channels // len(self.scale))

    def rotate(self, channels: Tensor) -> Tensor:
        """Channels `[T, C]` → components `[T, r]`."""
        scaled = channels / self.channel_scale
        components = scaled.new_empty(len(scaled), len(self))
        for number, (basis, part) in enumerate(zip(self.bases, self._parts(scaled), strict=True)):
            components[:, self.block == number] = part @ basis.float()
        return components

    def restore(self, symbols: Tensor) -> Tensor:
        """Symbols `[T, r]`, whole or finer, → channels `[T, C]`, those of constant heads 0."""
        return torch.cat([symbols[:, own] @ matrix for own, matrix in self._decoders], dim=1)

    def quantise(self, components: Tensor) -> Tensor:
        """Symbols of components, fp32 `[T, r]`."""
        symbols = torch.empty_like(components)
        for alphabet, own in self._columns:
            symbols[:, own] = quantise_components(components[:, own], self.step[own], alphabet.limit)
        return symbols

    def pack(self, symbols: Tensor) -> dict[str, Tensor]:
        """One array of bytes `[T, bytes]` per alphabet in use."""
        return {_name(alphabet): alphabet.pack(symbols[:, own]) for alphabet, own in self._columns}

    def unpack(self, rows: dict[str, Tensor], tokens: int) -> Tensor:
        """Symbols `[T, r]` from the arrays of `pack`."""
        parts = [
            alphabet.unpack(rows[_name(alphabet)][:tokens], own.stop - own.start) for alphabet, own in self._columns
        ]
        return torch.cat(parts, dim=1) if parts else self.step.new_empty(tokens, 0)

    def arrays(self, fine: bool) -> dict[str, ArraySpec]:
        """What `pack` makes, and `fine` if it is wanted; bytes of 255 stand for no symbols."""
        widths = {_name(alphabet): alphabet.bytes_for(own.stop - own.start) for alphabet, own in self._columns}
        if fine and len(self):
            widths[FINE_ARRAY] = FINE.bytes_for(len(self))
        return {name: ArraySpec("uint8", (width,), ("byte",), 255) for name, width in widths.items()}

    def parameters(self) -> dict[str, np.ndarray]:
        """Arrays that make up the components."""
        tensors = {name: getattr(self, name) for name in ("scale", "block", "step", "per_byte")}
        tensors |= {f"basis/{number}": basis for number, basis in enumerate(self.bases)}
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}

    @classmethod
    def load(cls, tensors: dict[str, Any]) -> "Components":
        bases = tuple(tensors[f"basis/{i}"] for i in range(sum(name.startswith("basis/") for name in tensors)))
        return cls(tensors["scale"], bases, tensors["block"], tensors["step"], tensors["per_byte"])

    @cached_property
    def _columns(self) -> list[tuple[Alphabet, slice]]:
        """The alphabets in use and the columns that each codes."""
        found, first = [], 0
        for alphabet in ALPHABETS:
            count = int((self.per_byte == alphabet.per_byte).sum())
            if count:
                found.append((alphabet, slice(first, first + count)))
            first += count
        return found

    @cached_property
    def _decoders(self) -> list[tuple[Tensor | slice, Tensor]]:
        """Per block: its components, and the matrix from their symbols to its channels, fp32."""
        scale = torch.where(self.channel_scale.isinf(), 0.0, self.channel_scale)
        decoders: list[tuple[Tensor | slice, Tensor]] = []
        for number, (basis, of_block) in enumerate(zip(self.bases, self._parts(scale[None]), strict=True)):
            own = torch.nonzero(self.block == number).flatten() if len(self.bases) > 1 else slice(None)
            decoders.append((own, self.step[own, None] * basis.float().T * of_block))
        return decoders

    def _parts(self, channels: Tensor) -> tuple[Tensor, ...]:
        return torch.split(channels, [len(basis) for basis in self.bases], dim=1)


def _name(alphabet: Alphabet) -> str:
    return f"components/{alphabet.size}_levels"

"""Small integers in bytes, as many as fit, so that a byte coder sees what a bit costs.

A symbol of entropy 0.4 bits in a byte of its own costs a byte coder one bit at least. Five ternary symbols make one
byte of entropy 2, which the Huffman stage of zstd codes to within a few per cent.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alphabet:
    """`size` symbols, an odd number, centred on zero, `per_byte` of them in a byte."""

    size: int
    per_byte: int

    @property
    def limit(self) -> int:
        """Largest symbol."""
        return self.size // 2

    def bytes_for(self, symbols: int) -> int:
        return -(-symbols // self.per_byte)

    def pack(self, symbols: Tensor) -> Tensor:
        """Symbols `[T, n]` → bytes `[T, ceil(n / per_byte)]`; the last byte is filled with zeros of the alphabet."""
        missing = -symbols.shape[1] % self.per_byte
        digits = torch.nn.functional.pad(symbols.long() + self.limit, (0, missing), value=self.limit)
        weights = self.size ** torch.arange(self.per_byte, device=symbols.device)
        packed: Tensor = (digits.unflatten(1, (-1, self.per_byte)) * weights).sum(-1).to(torch.uint8)
        return packed

    def unpack(self, packed: Tensor, symbols: int) -> Tensor:
        """Bytes `[T, bytes]` → symbols `[T, symbols]`, fp32."""
        return _table(self, packed.device)[packed.int()].flatten(1)[:, :symbols]


@lru_cache
def _table(alphabet: Alphabet, device: torch.device) -> Tensor:
    """Symbols of each byte, fp32 `[256, per_byte]`."""
    weights = alphabet.size ** torch.arange(alphabet.per_byte)
    return (torch.arange(256)[:, None] // weights % alphabet.size - alphabet.limit).float().to(device)


# 3^5 = 243, 5^3 = 125, 15^2 = 225 and 255 of 256 byte values are used.
ALPHABETS = (Alphabet(3, 5), Alphabet(5, 3), Alphabet(15, 2), Alphabet(255, 1))

"""NF4 on a CPU, for matrices that the kernel of bitsandbytes does not serve.

Where the processor has bf16 instructions, it repacks a matrix in blocks of 32 rows, with whole blocks of 64 codes in
every row, and fails on others; and its dequantisation takes each row for a whole number of blocks, which turns rows of
48 or 96 codes into others without a word. As one long row the same codes come out right.
"""

import copy
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor

ROWS = 32


class _AsOneRow(bnb.nn.Linear4bit):
    """A 4-bit layer that dequantises its weight as one row, and multiplies by it."""

    def forward(self, x: Tensor) -> Tensor:
        state = copy.copy(self.weight.quant_state)
        count = state.shape.numel()
        shape, state.shape = state.shape, torch.Size((1, count + count % 2))  # two codes to a byte
        weight = bnb.functional.dequantize_4bit(self.weight.reshape(-1, 1), state).flatten()[:count].reshape(shape)
        x_computed = x if self.compute_dtype is None else x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(x_computed.dtype)
        return torch.nn.functional.linear(x_computed, weight.to(x_computed.dtype), bias).to(x.dtype)


def serve_any_shape(model: Any) -> None:
    """Let the 4-bit layers whose shapes the CPU kernel does not serve compute from their dequantised weights."""
    for module in model.modules():
        if type(module) is bnb.nn.Linear4bit:
            state = module.weight.quant_state
            if state.shape[0] % ROWS or state.shape[1] % state.blocksize:
                module.__class__ = _AsOneRow

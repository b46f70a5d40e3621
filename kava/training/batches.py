"""Batches: token ids from the token set, teacher KV from the store."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict

import torch
from torch import Tensor

from kava.cache.capture import KeysValues
from kava.cache.extract import pad_ids
from kava.cache.reader import StoreReader
from kava.data.tokens import Segment, TokenSet
from kava.training.order import partners
from kava.training.prefetch import Prefetch


class Batch(TypedDict):
    """What one step reads.

    `input_ids`, `attention_mask`, `label_mask`, `kv_mask` are `[B, T]`; the last marks tokens that have teacher KV.
    `teacher_keys` and `teacher_values` are `[B, L_t, H_t, T, D_t]` in the dtype that the store's codec decodes to,
    absent for an arm without teacher.
    """

    input_ids: Tensor
    attention_mask: Tensor
    label_mask: Tensor
    kv_mask: Tensor
    teacher_keys: Tensor
    teacher_values: Tensor


class Batches:
    """Collates examples of one split.

    Parameters
    ----------
    tokens
        The token set.
    split
        `train` or `validation`.
    store
        Sealed teacher store over the same token set; None for an arm that has no teacher.
    shuffle_seed
        Give each example the KV of another one of like length; None for its own.
    """

    def __init__(
        self, tokens: TokenSet, split: str, store: StoreReader | None, shuffle_seed: int | None = None
    ) -> None:
        self.ids, self.segments, self.split, self.store = tokens.input_ids[split], tokens.segments[split], split, store
        self.source = list(range(len(self.ids)))
        if shuffle_seed is not None:
            self.source = partners(tokens.lengths(split), shuffle_seed)

    def __len__(self) -> int:
        return len(self.ids)

    def collate(self, examples: list[int]) -> Batch:
        """Batch of examples, padded on the right."""
        input_ids, mask = pad_ids([self.ids[example] for example in examples])
        segments, _ = pad_ids([self.segments[example] for example in examples])
        batch = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "label_mask": ((segments != Segment.PROMPT) & mask.bool()).long(),
            "kv_mask": mask.clone(),
        }
        if self.store is not None:
            self._add_teacher(batch, examples)
        return batch  # type: ignore[return-value]

    def slice(self, examples: Iterable[int], batch_size: int) -> Iterator[Batch]:
        """Batches over given examples, in order, read ahead of their use."""
        chosen = list(examples)
        parts = (chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size))
        with Prefetch(self.collate, parts) as batches:
            yield from batches

    def _add_teacher(self, batch: dict[str, Tensor], examples: list[int]) -> None:
        assert self.store is not None
        geometry, (rows, tokens) = self.store.geometry, batch["input_ids"].shape
        shape = (rows, tokens, geometry.layers, geometry.kv_heads, geometry.head_dim)
        padded: list[Tensor] = []
        for row, example in enumerate(examples):
            read = self.store.read(self.split, self.source[example])
            length = min(len(self.ids[example]), len(read[0]))
            # In the codec's dtype, which the projector widens: a bf16 store needs half the memory and the copying.
            padded = padded or [tensor.new_empty(shape) for tensor in read]
            for whole, tensor in zip(padded, read, strict=True):
                whole[row, :length], whole[row, length:] = tensor[:length], 0
            batch["kv_mask"][row, length:] = 0
        batch["teacher_keys"], batch["teacher_values"] = (x.permute(0, 2, 3, 1, 4) for x in padded)


def teacher_kv(batch: Batch, device: torch.device) -> KeysValues:
    """The teacher's side of a batch, on a device."""
    return KeysValues(batch["teacher_keys"].to(device), batch["teacher_values"].to(device))


def reader_onto(device: torch.device, read: Callable[[list[int]], Batch]) -> Callable[[list[int]], Batch]:
    """`read`, followed on a GPU by the copy to it, for a background thread to call.

    The copy goes from pinned memory over a stream of its own, or it would queue behind the kernels of the step that
    is being computed.
    """
    if device.type != "cuda":
        return read
    stream = torch.cuda.Stream(device)

    def read_and_copy(examples: list[int]) -> Batch:
        batch = read(examples)
        with torch.cuda.stream(stream):
            copied = {name: x.pin_memory().to(device, non_blocking=True) for name, x in batch.items()}  # type: ignore
        stream.synchronize()
        for tensor in copied.values():
            # The memory belongs to the copying stream, which must not reuse it before the step's kernels are done.
            tensor.record_stream(torch.cuda.default_stream(device))
        return copied  # type: ignore[return-value]

    return read_and_copy

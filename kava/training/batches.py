"""Batches: token ids from the token set, teacher KV from the store."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from kava.cache.capture import KeysValues
from kava.cache.extract import pad_ids
from kava.cache.reader import StoreReader
from kava.data.tokens import Segment, TokenSet
from kava.errors import UserError
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
        if store is not None:
            _check_store(store, split, self.ids)
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
        kv_mask = torch.zeros_like(batch["input_ids"])
        for row, example in enumerate(examples):
            kv, info = self.store.read(self.split, self.source[example])
            inside = int((info.position < len(self.ids[example])).sum())
            where = slice(0, inside) if self.store.keeps_every_token else info.position[:inside]
            # In the codec's dtype, which the projector widens: a bf16 store needs half the memory and the copying.
            padded = padded or [tensor.new_zeros(shape) for tensor in kv]
            for whole, tensor in zip(padded, kv, strict=True):
                whole[row, where] = tensor[:inside]
            kv_mask[row, where if isinstance(where, slice) else where.cpu()] = 1
        batch["kv_mask"] = kv_mask
        batch["teacher_keys"], batch["teacher_values"] = (x.permute(0, 2, 3, 1, 4) for x in padded)


def _check_store(store: StoreReader, split: str, ids: list[np.ndarray]) -> None:
    """Raise `UserError` for a store that cannot teach these examples token by token."""
    if store.scope == "head":
        raise UserError(
            "the store keeps other tokens in each layer and head, and distillation compares KV token by token; set "
            "scope: example in the selection"
        )
    for example in {0, len(ids) // 2, len(ids) - 1}:
        info = store.tokens(split, example)
        position = info.position.cpu().numpy()
        if position[-1] >= len(ids[example]) or (ids[example][position] != info.id.cpu().numpy()).any():
            raise UserError(
                f"{split} example {example} has other tokens in the store than in the token set: they are of other data"
            )


def teacher_kv(batch: Batch, device: torch.device) -> KeysValues:
    """The teacher's side of a batch, on a device."""
    return KeysValues(batch["teacher_keys"].to(device), batch["teacher_values"].to(device))


def reader_onto(device: torch.device, read: Callable[[list[int]], Batch]) -> Callable[[list[int]], Batch]:
    """`read`, followed on a GPU by the copy to it, for a background thread to call.

    Decoding and copying run on a stream of their own, or they would queue behind the kernels of the step that is being
    computed.
    """
    if device.type != "cuda":
        return read
    stream = torch.cuda.Stream(device)

    def read_and_copy(examples: list[int]) -> Batch:
        with torch.cuda.stream(stream):
            batch = read(examples)
            copied = {name: _copied(x, device) for name, x in batch.items()}  # type: ignore
        stream.synchronize()
        for tensor in copied.values():
            # The memory belongs to the copying stream, which must not reuse it before the step's kernels are done.
            tensor.record_stream(torch.cuda.default_stream(device))
        return copied  # type: ignore[return-value]

    return read_and_copy


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor if tensor.device == device else tensor.pin_memory().to(device, non_blocking=True)

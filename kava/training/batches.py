"""Batches: token ids from the token set, what is known of the teacher from its signals."""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from kava.config.arms import Arm
from kava.data.tokens import Segment, TokenSet
from kava.kv import KeysValues, pad_ids
from kava.store.reader import StoreReader
from kava.training.prefetch import Prefetch
from kava.training.signals import from_store
from kava.training.signals.base import StoredSplit, TeacherSignals

PADDING = -1  # no `Segment`
# Names of tensors, see `Batches.collate`.
Batch = dict[str, Tensor]


class Batches:
    """Collates examples of one split.

    Parameters
    ----------
    tokens
        The token set.
    split
        `train` or `validation`.
    teacher
        Its signals; none for an arm that reads nothing of the teacher.

    Attributes
    ----------
    ids, segments
        Of every example, as the student reads it.
    """

    def __init__(self, tokens: TokenSet, split: str, teacher: TeacherSignals | None = None) -> None:
        self.ids, self.segments = tokens.student_ids[split], tokens.student_segments[split]
        self.teacher = teacher or TeacherSignals()
        self._labels = [int((segments[1:] != Segment.PROMPT).sum()) for segments in self.segments]

    def __len__(self) -> int:
        return len(self.ids)

    def collate(self, examples: list[int], wanted: Collection[str] | None = None) -> Batch:
        """Batch of examples, padded on the right.

        Parameters
        ----------
        examples
            Their indices.
        wanted
            Names of the teacher's signals; None for all that there are.

        Returns
        -------
        dict
            For B examples of T tokens: `input_ids`, `attention_mask` and `label_mask`, `[B, T]`; `segments`, `[B, T]`,
            a `Segment` per token and −1 for padding; `kv_mask` and float32 `kv_weight`, `[B, T]`, zeros without the
            signal `kv`; and what each wanted signal gives.
        """
        input_ids, mask = pad_ids([self.ids[example] for example in examples])
        segments, _ = pad_ids([self.segments[example] for example in examples])
        batch = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "label_mask": ((segments != Segment.PROMPT) & mask.bool()).long(),
            "segments": segments.masked_fill(mask == 0, PADDING),
            "kv_mask": torch.zeros_like(mask),
            "kv_weight": torch.zeros(mask.shape),
        }
        self.teacher.add_to(batch, examples, wanted)
        return batch

    def counts(self, examples: list[int]) -> dict[str, float]:
        """What the losses of examples are means over, by the names of `MeanOver`."""
        return {
            "labels": float(sum(self._labels[example] for example in examples)),
            "kv": 0.0,
            "covered": 0.0,
            "examples": float(len(examples)),
            "predicted": 0.0,
            "tokens": float(sum(len(self.ids[example]) for example in examples)),
        } | self.teacher.counts(examples)

    def slice(self, examples: Iterable[int], batch_size: int) -> Iterator[Batch]:
        """Batches over given examples, in order, read ahead of their use."""
        chosen = list(examples)
        parts = (chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size))
        with Prefetch(self.collate, parts) as batches:
            yield from batches


def stored_batches(
    tokens: TokenSet, split: str, store: StoreReader | None, arm: Arm | None = None, shuffle_seed: int | None = None
) -> Batches:
    """Batches whose teacher is a store, see `StoredSplit`; None for an arm that reads nothing of the teacher.

    Raises
    ------
    UserError
        The store is of other data, or an example has no token that the arm could compare.
    """
    return Batches(tokens, split, from_store(StoredSplit(store, tokens, split, arm, shuffle_seed)) if store else None)


def teacher_kv(batch: Batch, device: torch.device) -> KeysValues:
    """The teacher's side of a batch, on a device."""
    return KeysValues(batch["teacher_keys"].to(device), batch["teacher_values"].to(device))


def reader_onto(device: torch.device, read: Callable[[Any], Batch]) -> Callable[[Any], Batch]:
    """`read`, followed on a GPU by the copy to it, for a background thread to call.

    Decoding and copying run on a stream of their own, or they would queue behind the kernels of the step that is being
    computed.
    """
    if device.type != "cuda":
        return read
    stream = torch.cuda.Stream(device)

    def read_and_copy(items: Any) -> Batch:
        with torch.cuda.stream(stream):
            copied = {name: _copied(tensor, device) for name, tensor in read(items).items()}
        stream.synchronize()
        for tensor in copied.values():
            # The memory belongs to the copying stream, which must not reuse it before the step's kernels are done.
            tensor.record_stream(torch.cuda.default_stream(device))
        return copied

    return read_and_copy


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    # Decoded KV lies there already, on a device with an index where the wanted one may have none.
    return tensor if tensor.device.type == device.type else tensor.pin_memory().to(device, non_blocking=True)

"""Batches: token ids from the token set, what is known of the teacher from the store."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from kava.align.time import warp_rows
from kava.config.arms import TimeWarp
from kava.data.tokens import Segment, TokenSet
from kava.kv import KeysValues, pad_ids
from kava.store.reader import StoredExample, StoreReader
from kava.training.order import partners
from kava.training.prefetch import Prefetch
from kava.training.weights import (
    check_answers,
    check_store,
    check_warp,
    no_weight,
    relative_importance,
    segments_compared,
)

PADDING = -1  # no `Segment`

# Losses that read anything of the teacher.
TEACHER_LOSSES = frozenset({"kv", "codi", "logit_kd", "cka"})


class Batch(TypedDict, total=False):
    """What one step reads; T are the student's tokens.

    Attributes
    ----------
    input_ids, attention_mask, label_mask
        `[B, T]`.
    segments
        `[B, T]`, a `Segment` per token, −1 for padding.
    kv_mask
        `[B, T]`, 1 for tokens that have teacher KV.
    kv_weight
        Float32 `[B, T]`, what a token counts in the KV loss: 0 without teacher KV or outside the arm's segments.
    teacher_keys, teacher_values
        `[B, L_t, H_t, T, D_t]` in the dtype that the store's codec decodes to; absent if the arm compares no KV.
    teacher_hidden
        Float32 `[B, L_t + 1, W_t]`, hidden states at the last token before the answer; for `auxiliary.codi`.
    topk_ids, topk_logprobs
        `[N, K]`, int64 and float32, a row per answer token of the batch, row by row; for `auxiliary.logit_kd`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    label_mask: Tensor
    segments: Tensor
    kv_mask: Tensor
    kv_weight: Tensor
    teacher_keys: Tensor
    teacher_values: Tensor
    teacher_hidden: Tensor
    topk_ids: Tensor
    topk_logprobs: Tensor


class Batches:
    """Collates examples of one split.

    Parameters
    ----------
    tokens
        The token set.
    split
        `train` or `validation`.
    store
        Sealed teacher store over the same token set; None for an arm that reads nothing of the teacher.
    arm
        Settings of the arm, as JSON values; None to compare all tokens alike and to read KV alone, as the metrics do.
    shuffle_seed
        Give each example the KV of another one of like length; None for its own.

    Attributes
    ----------
    ids, segments
        Of every example, as the student reads it.

    Raises
    ------
    UserError
        The store is of other data, or an example has no token that the arm could compare.
    """

    def __init__(
        self,
        tokens: TokenSet,
        split: str,
        store: StoreReader | None,
        arm: dict[str, Any] | None = None,
        shuffle_seed: int | None = None,
    ) -> None:
        self.ids, self.segments = tokens.student_ids[split], tokens.student_segments[split]
        self.split, self.store, self.arm = split, store, arm
        self.source = list(range(len(self.ids)))
        if shuffle_seed is not None:
            self.source = partners(tokens.lengths(split), shuffle_seed)
        auxiliary = arm["auxiliary"] if arm else {"codi": None, "logit_kd": None, "cka": None}
        self._reads_kv = store is not None and (not arm or bool(arm["aligner"] or auxiliary["cka"]))
        self._reads_hidden, self._reads_logits = bool(auxiliary["codi"]), bool(auxiliary["logit_kd"])
        self._labels = [int((segments[1:] != Segment.PROMPT).sum()) for segments in self.segments]
        self._answers = [int((segments == Segment.ANSWER).sum()) for segments in self.segments]
        self._kv_weight, self._covered = np.zeros(len(self.ids)), np.zeros(len(self.ids))
        self._by_importance = arm is not None and bool(arm["aligner"]) and arm["loss"]["weights"] == "importance"
        self._warp: dict[str, Any] = arm["time_warp"] if arm else TimeWarp().model_dump()
        self._teacher_segments: list[np.ndarray] | None = None
        if self.ids is not tokens.input_ids[split]:
            self._teacher_segments = tokens.segments[split]
            assert not self._by_importance, "importance is of the teacher's tokens, and the student reads others"
        if store is not None:
            self._check(tokens)

    def __len__(self) -> int:
        return len(self.ids)

    def collate(self, examples: list[int], due: frozenset[str] = TEACHER_LOSSES) -> Batch:
        """Batch of examples, padded on the right, with what the arm's losses in `due` read of the teacher."""
        input_ids, mask = pad_ids([self.ids[example] for example in examples])
        segments, _ = pad_ids([self.segments[example] for example in examples])
        batch: Batch = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "label_mask": ((segments != Segment.PROMPT) & mask.bool()).long(),
            "segments": segments.masked_fill(mask == 0, PADDING),
            "kv_mask": torch.zeros_like(mask),
            "kv_weight": torch.zeros(mask.shape),
        }
        if self._reads_kv and due & {"kv", "cka"}:
            self._add_kv(batch, examples)
        if self._reads_hidden and "codi" in due:
            batch["teacher_hidden"] = torch.stack([self._store.hidden_states(self.split, i).float() for i in examples])
        if self._reads_logits and "logit_kd" in due:
            ids, logprobs = zip(*(self._store.topk_logits(self.split, i) for i in examples), strict=True)
            batch["topk_ids"], batch["topk_logprobs"] = torch.cat(ids).long(), torch.cat(logprobs).float()
        return batch

    def counts(self, examples: list[int]) -> dict[str, float]:
        """What the losses of examples are means over: labels, KV weight, tokens with KV, examples, answer tokens."""
        return {
            "labels": float(sum(self._labels[example] for example in examples)),
            "kv": float(sum(self._kv_weight[example] for example in examples)),
            "covered": float(sum(self._covered[example] for example in examples)),
            "examples": float(len(examples)),
            "answers": float(sum(self._answers[example] for example in examples)),
        }

    def slice(self, examples: Iterable[int], batch_size: int) -> Iterator[Batch]:
        """Batches over given examples, in order, read ahead of their use."""
        chosen = list(examples)
        parts = (chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size))
        with Prefetch(self.collate, parts) as batches:
            yield from batches

    @property
    def _store(self) -> StoreReader:
        assert self.store is not None, "the arm reads the teacher, and there is no store"
        return self.store

    def _add_kv(self, batch: Batch, examples: list[int]) -> None:
        geometry, (rows, tokens) = self._store.geometry, batch["input_ids"].shape
        shape = (rows, tokens, geometry.layers, geometry.kv_heads, geometry.head_dim)
        padded: list[Tensor] = []
        for row, example in enumerate(examples):
            kv, position = self._laid(self._store.read(self.split, self.source[example]), example)
            where = _inside(position, len(self.ids[example]), self._store.keeps_every_token)
            covered = batch["kv_mask"][row]
            covered[where] = 1
            # In the codec's dtype, which the projector widens: a bf16 store needs half the memory and the copying.
            padded = padded or [tensor.new_zeros(shape) for tensor in kv]
            for whole, tensor in zip(padded, kv, strict=True):
                whole[row, where] = tensor[: int(covered.sum())]
            batch["kv_weight"][row, where] = self._weight(example)[where]
        batch["teacher_keys"], batch["teacher_values"] = (x.permute(0, 2, 3, 1, 4) for x in padded)

    def _laid(self, stored: StoredExample, example: int) -> tuple[KeysValues, Tensor]:
        """Teacher KV and the student's tokens that it is for; on tokens of its own the student gets a row for each."""
        kv, position = stored.kv, stored.info.position
        if not self._teacher_segments:
            return kv, position
        theirs, ours = self._teacher_segments[self.source[example]], self.segments[example]
        return KeysValues(*(warp_rows(tensor, theirs, ours, **self._warp) for tensor in kv)), torch.arange(len(ours))

    def _weight(self, example: int) -> Tensor:
        """What each of an example's tokens would count with teacher KV, float32 `[T]`."""
        if self.arm is None:
            return torch.ones(len(self.ids[example]))
        weight = segments_compared(self.segments[example], self.arm["segments"])
        if self._by_importance:
            # Of the example itself, also where it gets another's KV: its control differs in nothing but that.
            weight *= relative_importance(self._store.scores(self.split, example).importance.cpu())
        return weight

    def _check(self, tokens: TokenSet) -> None:
        store, arm, split = self._store, self.arm, self.split
        check_store(store, split, tokens.input_ids[split], self._reads_kv)
        if self._reads_logits:
            check_answers(tokens, split)
        if self._reads_kv and self._teacher_segments:
            check_warp(store, split, [self._teacher_segments[i] for i in self.source], self.segments)
        if not self._reads_kv:
            return
        matched = self.source == list(range(len(self)))
        if matched and store.keeps_every_token and (not arm or len(set(arm["segments"])) == len(Segment)):
            # Relative importance has mean 1, and would be read for nothing.
            self._kv_weight = self._covered = np.array([len(ids) for ids in self.ids], float)
            return
        for example, source in enumerate(self.source):
            own = len(self.ids[example])
            theirs = own if self._teacher_segments else len(tokens.input_ids[split][source])
            position = torch.arange(theirs) if store.keeps_every_token else store.kept(split, source).position
            weight = self._weight(example)[_inside(position, own, store.keeps_every_token)]
            if arm and not weight.any():
                raise no_weight(split, example, arm)
            self._kv_weight[example], self._covered[example] = weight.double().sum(), len(weight)


def _inside(position: Tensor, tokens: int, contiguous: bool) -> slice | Tensor:
    """The positions before `tokens`; a slice, which copies faster, if they are 0, 1, 2 and so on."""
    inside = int((position < tokens).sum())
    return slice(0, inside) if contiguous else position[:inside].cpu()


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
            batch = read(items)
            copied = {name: _copied(tensor, device) for name, tensor in cast(dict[str, Tensor], batch).items()}
        stream.synchronize()
        for tensor in copied.values():
            # The memory belongs to the copying stream, which must not reuse it before the step's kernels are done.
            tensor.record_stream(torch.cuda.default_stream(device))
        return cast(Batch, copied)

    return read_and_copy


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    # Decoded KV lies there already, on a device with an index where the wanted one may have none.
    return tensor if tensor.device.type == device.type else tensor.pin_memory().to(device, non_blocking=True)

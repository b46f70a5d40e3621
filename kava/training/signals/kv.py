"""`kv`: the teacher's keys and values, laid onto the student's tokens, and how much each token counts."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from kava.align.time import warp_rows
from kava.config.arms import TimeWarp
from kava.data.tokens import Segment, of_segments
from kava.errors import UserError
from kava.kv import KeysValues, layers_first
from kava.store.reader import StoredExample
from kava.training.signals.base import Signal, StoredSplit, TeacherShape


class Kv(Signal):
    """`teacher_keys`, `teacher_values`, `kv_mask` and `kv_weight`.

    Keys and values are `[B, L_t, H_t, T, D_t]` in the dtype that the store's codec decodes to. The mask is 1 for tokens
    that have teacher KV; the float32 weight is what a token counts in the KV loss, 0 without KV or outside the arm's
    segments.
    """

    name = "kv"

    def __init__(self, stored: StoredSplit) -> None:
        super().__init__(stored)
        tokens, split, arm = stored.tokens, stored.split, stored.arm
        self._ids, self._segments = tokens.student_ids[split], tokens.student_segments[split]
        self._by_importance = arm is not None and arm.aligner is not None and arm.loss.weights == "importance"
        self._warp = arm.time_warp if arm else TimeWarp()
        # On tokens of its own the student gets a row for each.
        self._teacher_segments = None if self._ids is tokens.input_ids[split] else tokens.segments[split]
        assert not (self._by_importance and self._teacher_segments), "importance is of tokens that the student lacks"
        if self._teacher_segments:
            self._check_warp(self._teacher_segments)
        self._weights, self._covered = self._sums()

    def read(self, examples: list[int], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        store, (rows, tokens) = self.stored.store, batch["input_ids"].shape
        geometry = store.geometry
        shape = (rows, tokens, geometry.layers, geometry.kv_heads, geometry.head_dim)
        mask, weight = torch.zeros_like(batch["attention_mask"]), torch.zeros(rows, tokens)
        padded: list[Tensor] = []
        for row, example in enumerate(examples):
            kv, position = self._laid(store.read(self.stored.split, self.stored.source[example]), example)
            where = _inside(position, len(self._ids[example]), store.keeps_every_token)
            mask[row][where] = 1
            # In the codec's dtype, which the projector widens: a bf16 store needs half the memory and the copying.
            padded = padded or [tensor.new_zeros(shape) for tensor in kv]
            for whole, tensor in zip(padded, kv, strict=True):
                whole[row, where] = tensor[: int(mask[row].sum())]
            weight[row, where] = self.weight(example)[where]
        keys, values = map(layers_first, padded)
        return {"kv_mask": mask, "kv_weight": weight, "teacher_keys": keys, "teacher_values": values}

    def counts(self, examples: list[int]) -> dict[str, float]:
        sides = {"kv": self._weights, "covered": self._covered}
        return {name: float(sum(of_each[example] for example in examples)) for name, of_each in sides.items()}

    def weight(self, example: int) -> Tensor:
        """What each of an example's tokens would count with teacher KV, float32 `[T]`."""
        stored = self.stored
        if stored.arm is None:
            return torch.ones(len(self._ids[example]))
        weight = segments_compared(self._segments[example], stored.arm.segments)
        if self._by_importance:
            # Of the example itself, also where it gets another's KV: its control differs in nothing but that.
            weight *= relative_importance(stored.store.scores(stored.split, example).importance.cpu())
        return weight

    @staticmethod
    def largest(teacher: TeacherShape, rows: int, tokens: int, predicted: Mapping[str, int]) -> dict[str, Tensor]:
        del predicted
        dtype = torch.bfloat16 if teacher.codec == "bf16" else torch.float32  # the others decode to float32
        shape = (rows, tokens, teacher.geometry.layers, teacher.geometry.kv_heads, teacher.geometry.head_dim)
        return {name: layers_first(torch.zeros(shape, dtype=dtype)) for name in ("teacher_keys", "teacher_values")}

    def _laid(self, given: StoredExample, example: int) -> tuple[KeysValues, Tensor]:
        """Teacher KV and the student's tokens that it is for."""
        if not self._teacher_segments:
            return given.kv, given.info.position
        theirs, ours = self._teacher_segments[self.stored.source[example]], self._segments[example]
        warp = self._warp
        laid = (warp_rows(tensor, theirs, ours, ratio=warp.ratio, alpha=warp.alpha) for tensor in given.kv)
        return KeysValues(*laid), torch.arange(len(ours))

    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight and tokens with teacher KV of each example, both `[N]`."""
        store, arm, split, source = self.stored.store, self.stored.arm, self.stored.split, self.stored.source
        lengths = np.array([len(ids) for ids in self._ids], float)
        all_segments = arm is None or len(set(arm.segments)) == len(Segment)
        if source == list(range(len(lengths))) and store.keeps_every_token and all_segments:
            # Relative importance has mean 1, and would be read for nothing.
            return lengths, lengths
        weights, covered = np.zeros(len(lengths)), np.zeros(len(lengths))
        theirs = self.stored.tokens.input_ids[split]
        for example, other in enumerate(source):
            own = len(self._ids[example])
            length = own if self._teacher_segments else len(theirs[other])
            position = torch.arange(length) if store.keeps_every_token else store.kept(split, other).position
            weight = self.weight(example)[_inside(position, own, store.keeps_every_token)]
            if arm and not weight.any():
                raise UserError(
                    f"{split} example {example} has no token that the KV loss could compare: segments {arm.segments} "
                    f"with select {arm.select and arm.select.model_dump()}, loss.weights {arm.loss.weights} and "
                    f"teacher_kv {arm.teacher_kv} leave none; name more segments, or keep more tokens"
                )
            weights[example], covered[example] = weight.double().sum(), len(weight)
        return weights, covered

    def _check_warp(self, segments: list[np.ndarray]) -> None:
        """Raise `UserError` where teacher KV cannot be laid onto the student's tokens."""
        if not self.stored.store.keeps_every_token:
            raise UserError(
                "student_reasoning: equations interpolates between neighbouring tokens, and the selection drops some; "
                "set kv.select: {kind: full} and no select in the arm"
            )
        for example, (other, ours) in enumerate(zip(self.stored.source, self._segments, strict=True)):
            alone = np.setdiff1d(ours, segments[other])
            if alone.size:
                raise UserError(
                    f"the student reads {Segment(alone[0]).name.lower()} in {self.stored.split} example {example} "
                    "where the teacher has none whose KV it could be given; drop the example from the data"
                )


def relative_importance(importance: Tensor) -> Tensor:
    """Weights of an example's tokens from their importance.

    Parameters
    ----------
    importance
        Float32 `[T]`, NaN for tokens that were not scored.

    Returns
    -------
    Tensor
        `[T]`, with mean 1 over the scored tokens and 1 for the others; 1 everywhere if no token is of importance.
    """
    scored = ~importance.isnan()
    mean = importance[scored].sum() / scored.sum().clamp(min=1)
    return torch.where(scored, importance / mean, 1.0) if mean > 0 else torch.ones_like(importance)


def segments_compared(segments: np.ndarray, names: Iterable[str]) -> Tensor:
    """1 for the tokens of named segments, else 0: float32 `[T]`."""
    return torch.from_numpy(of_segments(segments, names)).float()


def _inside(position: Tensor, tokens: int, contiguous: bool) -> slice | Tensor:
    """The positions before `tokens`; a slice, which copies faster, if they are 0, 1, 2 and so on."""
    inside = int((position < tokens).sum())
    return slice(0, inside) if contiguous else position[:inside].cpu()

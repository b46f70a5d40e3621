"""Teacher KV without a store: the teacher reads each batch, in the step or as the batch is made."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kava.kv import KeysValues
from kava.models.capture import capture
from kava.training.model import DistillationModel
from kava.training.signals.base import StoredSplit, TeacherSignals
from kava.training.signals.kv import Kv


class Stopwatch:
    """Adds up the time of something; on a GPU by events, which do not make the host wait."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spent = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside."""
        if self._device.type != "cuda":
            started = time.monotonic()
            yield
            self._spent += time.monotonic() - started
            return
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        yield
        events[1].record()
        self._events.append(events)

    def seconds(self) -> float:
        """In all so far."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._spent + sum(start.elapsed_time(end) for start, end in self._events) / 1000


class LiveKv(Kv):
    """KV from one forward of the teacher over the batch, without its head and without gradients.

    Parameters
    ----------
    teacher
        The model, resident beside the student.
    watch
        Counts the teacher's time.
    ahead
        Compute KV as batches are made: in a background thread, on a GPU on a stream of its own. Otherwise whoever uses
        a batch calls `kv`.
    stored
        The store has channel statistics and the form of keys, and is not read for KV. The arm compares every token with
        the KV of its own example.
    """

    def __init__(self, teacher: Any, watch: Stopwatch, ahead: bool, stored: StoredSplit) -> None:
        super().__init__(stored)
        assert stored.source == sorted(stored.source), "the online way reads each example's own KV"
        self._teacher, self._watch, self._ahead = teacher, watch, ahead

    @torch.no_grad()
    def kv(self, input_ids: Tensor, attention_mask: Tensor) -> KeysValues:
        """The teacher's KV of ids `[B, T]`, in its dtype as in extraction, whatever autocast is on."""
        device = self._teacher.device
        with self._watch.running(), torch.autocast(device.type, enabled=False):
            return capture(self._teacher, input_ids.to(device), attention_mask.to(device), self.stored.store.keys_form)[
                0
            ]

    def read(self, examples: list[int], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = torch.zeros(batch["attention_mask"].shape)
        for row, example in enumerate(examples):
            own = self.weight(example)
            weight[row, : len(own)] = own
        found = {"kv_mask": batch["attention_mask"].clone(), "kv_weight": weight}
        if self._ahead:
            found["teacher_keys"], found["teacher_values"] = self.kv(batch["input_ids"], batch["attention_mask"])
        return found


def live_teacher(
    teacher: Any, watch: Stopwatch, ahead: bool, model: DistillationModel, stored: StoredSplit
) -> TeacherSignals:
    """Signals for `run_phase`; unless KV is computed ahead, the model asks the teacher before each forward."""
    live = LiveKv(teacher, watch, ahead, stored)

    def ask(_model: Any, positional: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        kv = live.kv(batch["input_ids"], batch["attention_mask"])
        return positional, batch | {"teacher_keys": kv.keys, "teacher_values": kv.values}

    if not ahead:
        model.register_forward_pre_hook(ask, with_kwargs=True)
    return TeacherSignals([live])

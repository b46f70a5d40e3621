"""Stop between two steps when the process is asked to end, with a checkpoint."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from kava.errors import UserError


class Terminated(UserError):
    """The process was asked to end; what it had done is saved."""


class StopOnSigterm(TrainerCallback):
    """Lets the step that is being computed end, saves, and stops; a context manager around training."""

    def __init__(self) -> None:
        self.asked = False
        self._former: Any = None

    def __enter__(self) -> "StopOnSigterm":
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._former is not None:
            signal.signal(signal.SIGTERM, self._former)

    def on_step_end(self, args: Any, _state: Any, control: Any, **_: Any) -> None:
        if distributed.is_initialized():
            # All processes stop after the same step, whichever was told first.
            asked = torch.tensor(int(self.asked), device=args.device)
            distributed.all_reduce(asked, distributed.ReduceOp.MAX)
            self.asked = bool(asked)
        if self.asked:
            control.should_save = control.should_training_stop = True

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True

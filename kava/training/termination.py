"""Stop between two steps when the process is asked to end, with a checkpoint."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed

from kava.errors import Interrupted, UserError


class Terminated(UserError):
    """The process was asked to end; what it had done is saved."""


def heeded() -> list[signal.Signals]:
    """SIGTERM, and SIGINT unless the process was started to ignore it, as a script's shell does in the background."""
    return [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]


class StopOnSignal:
    """Lets the step that is being computed end, saves, and stops; a context manager around training.

    For SIGTERM and for SIGINT, which is Ctrl-C; a Ctrl-C after that ends the process at once.

    Attributes
    ----------
    asked
        Number of the signal that came; 0 for none.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in heeded()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether to stop: all processes do so after the same step, whichever got the signal first."""
        if accelerator.num_processes > 1:
            asked = torch.tensor(self.asked, device=accelerator.device)
            distributed.all_reduce(asked, distributed.ReduceOp.MAX)
            self.asked = int(asked)
        return bool(self.asked)

    def stopped(self, step: int, arm: str) -> UserError:
        """What to raise when training has stopped after a step."""
        if self.asked == signal.SIGINT:
            return Interrupted(f"interrupted after step {step} of {arm}, which is saved; run again to go on")
        return Terminated(f"ended by SIGTERM after step {step} of {arm}, which is saved; run again")

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.asked = number
        # One of several processes is told by the one that started them, which knows when it has been enough.
        if "RANK" not in os.environ and signal.SIGINT in self._former:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if number == signal.SIGINT:
                # Not by logging or print, in whose midst the signal may have come.
                os.write(2, b"\ninterrupted: the step is being finished and saved; Ctrl-C again ends it at once\n")

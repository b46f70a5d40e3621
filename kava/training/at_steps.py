"""The student as it was at some steps of its training: each a whole model, in a folder that its step names."""

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn


class AtSteps:
    """Writes a student at some of its steps; training goes on as if nothing were written.

    Parameters
    ----------
    steps
        After which a student is written.
    folder
        Of their folders; nothing else lies there.
    write
        Writes the student as it is into a folder that is not there yet.
    """

    def __init__(self, steps: Sequence[int], folder: Path, write: Callable[[Path], None]) -> None:
        self.steps, self._folder, self._write = frozenset(steps), folder, write

    def begin(self, step: int) -> None:
        """Begin after so many steps, up to which all was written: before the checkpoint of its step.

        What else lies there is of another run, or will be written again.
        """
        if self._folder.is_dir():
            kept = {str(each) for each in self.steps if each <= step}
            for path in self._folder.iterdir():
                if path.name not in kept:
                    shutil.rmtree(path)
            if not self.steps:
                self._folder.rmdir()

    def write(self, step: int) -> None:
        """Write the student aside and rename it: a kill leaves a whole one or none."""
        staged = self._folder / f"{step}.partial"
        self._write(staged)
        staged.rename(self._folder / str(step))


def on_host(model: nn.Module) -> Any:
    """A copy of a model whose tensors lie in host memory; the model and random numbers stay as they are."""
    tensors = [*model.parameters(), *model.buffers()]
    # What `deepcopy` finds here it takes for copied already: nothing of the model is twice on its device.
    copies: dict[int, Any] = {}
    for tensor in tensors:
        values = tensor.detach().to("cpu", copy=True)
        of_kind = nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
        copies[id(tensor)] = of_kind
    return copy.deepcopy(model, copies)

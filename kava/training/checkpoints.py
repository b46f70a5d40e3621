"""Checkpoints that hold what is trained, and are either whole or not there."""

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@dataclass
class Progress:
    """How far a run has come.

    Attributes
    ----------
    batch_size
        Examples per forward by now.
    step
        Optimizer steps that are done.
    sums, counts
        By name of a loss, its sum over the steps since the last line of `metrics.jsonl`, and in how many it occurred.
    out_of_memory
        Steps that were done again, each with the number of examples per forward from then on.
    """

    batch_size: int
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    out_of_memory: list[dict[str, int]] = field(default_factory=list)

    def add(self, losses: dict[str, Tensor]) -> None:
        """Take in the losses of a step."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] += 1

    def take_means(self) -> dict[str, float]:
        """Means over the steps since the last call."""
        means = {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, Counter()
        return means


class Checkpoints:
    """Those of one run, `checkpoint-<step>`, of which the newest are kept.

    Parameters
    ----------
    folder
        Theirs; folders beside it are of other settings, and are deleted.
    keep
        How many.
    accelerator
        Of the processes: the first one writes, and each its random numbers.
    """

    def __init__(self, folder: Path, keep: int, accelerator: Accelerator) -> None:
        self._folder, self._keep, self._accelerator = folder, keep, accelerator
        self._staged = folder / "staged.partial"
        self._random = f"random-{accelerator.process_index}.pt"
        if accelerator.is_main_process:
            for other in folder.parent.glob("*"):
                if other != folder:
                    shutil.rmtree(other)
            shutil.rmtree(self._staged, ignore_errors=True)

    def save(self, progress: Progress, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> None:
        """Write a checkpoint aside and rename it: a kill leaves a whole one or none."""
        first, staged = self._accelerator.is_main_process, self._staged
        if first:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            save_file(trained_tensors(model), staged / "model.safetensors")
            states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(states | {"progress": vars(progress)}, staged / "states.pt")
        self._accelerator.wait_for_everyone()
        random = {"cpu": torch.get_rng_state()}
        if self._accelerator.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state()
        torch.save(random, staged / self._random)
        self._accelerator.wait_for_everyone()
        if first:
            whole = self._folder / f"checkpoint-{progress.step}"
            shutil.rmtree(whole, ignore_errors=True)
            staged.rename(whole)
            for old in self._saved()[: -self._keep]:
                shutil.rmtree(old)

    def load_last(self, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> Progress | None:
        """Put everything back to where the newest checkpoint was written; None if there is none."""
        self._accelerator.wait_for_everyone()
        saved = self._saved()
        if not saved:
            return None
        tensors, parameters = load_file(saved[-1] / "model.safetensors"), dict(model.named_parameters())
        assert tensors.keys() == {name for name, p in parameters.items() if p.requires_grad}, "foreign checkpoint"
        with torch.no_grad():
            for name, tensor in tensors.items():
                parameters[name].copy_(tensor)
        # By way of host memory, of which there is more.
        states = torch.load(saved[-1] / "states.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(states["optimizer"])
        schedule.load_state_dict(states["schedule"])
        random = torch.load(saved[-1] / self._random, weights_only=True)
        torch.set_rng_state(random["cpu"])
        if self._accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"])
        progress = Progress(**states["progress"])
        progress.sums = {name: value.to(self._accelerator.device) for name, value in progress.sums.items()}
        return progress

    def _saved(self) -> list[Path]:
        """Oldest first."""
        return sorted(self._folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters with a gradient; tied ones appear once."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}

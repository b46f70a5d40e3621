"""Checkpoints that hold what is trained, and are either whole or not there."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints


class AtomicCheckpoints(Trainer):
    """Trainer that writes each checkpoint aside and renames it."""

    _staging: Path | None = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save what is trained; the Trainer's own way trips over tied weights inside a wrapper."""
        del state_dict
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_tensors(self.model), folder / "model.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / "model.safetensors")
        parameters = dict((model or self.model).named_parameters())
        assert saved.keys() == {name for name, p in parameters.items() if p.requires_grad}, "foreign checkpoint"
        with torch.no_grad():
            for name, tensor in saved.items():
                parameters[name].copy_(tensor)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A kill leaves a whole checkpoint or none."""
        run_folder = Path(str(self.args.output_dir))
        first = self.is_world_process_zero()
        self._staging = run_folder / "staged.partial"
        if first:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes the state of its random numbers
            if first:
                name = f"checkpoint-{self.state.global_step}"
                shutil.rmtree(run_folder / name, ignore_errors=True)
                (self._staging / name).rename(run_folder / name)
                rotate_checkpoints(output_dir=str(run_folder), save_total_limit=self.args.save_total_limit)
        finally:
            self._staging = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters with a gradient; tied ones appear once."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def last_checkpoint(folder: Path) -> str | None:
    """Newest whole checkpoint of a phase."""
    shutil.rmtree(folder / "staged.partial", ignore_errors=True)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None

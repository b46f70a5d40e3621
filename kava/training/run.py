"""What a phase is called and where it leaves what it has."""

from dataclasses import dataclass
from pathlib import Path

import torch

from kava.config.training import Distill, Pretrain

PhaseSettings = Pretrain | Distill


@dataclass(frozen=True)
class TrainingRun:
    """One phase of one arm.

    Attributes
    ----------
    folder
        Of the stage; checkpoints go to `checkpoints/<fingerprint>/`, logged steps to `metrics.jsonl`.
    fingerprint
        Hash of all that the run depends on, so that a checkpoint of other settings is never continued.
    arm
        Name for status lines.
    seed
        Of the data order and of dropout.
    device, tracker
        Where to run, and where to log.
    """

    folder: Path
    fingerprint: str
    arm: str
    seed: int
    device: torch.device
    tracker: str = "none"

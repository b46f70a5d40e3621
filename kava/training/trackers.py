"""Where logged steps go besides `metrics.jsonl`: trackers of accelerate, each an optional package."""

import os
from importlib.util import find_spec
from pathlib import Path

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from kava.config.training import Distill, Pretrain
from kava.errors import UserError

PROJECT = "kava"


def open_tracker(name: str, folder: Path, settings: Pretrain | Distill) -> GeneralTracker | None:
    """A tracker of a run, which is called as its folder is: experiment, arm, seed, stage.

    Parameters
    ----------
    name
        `none`, or the name of a package.
    folder
        Of the stage. TensorBoard's files and those of wandb stay there; checkpoints do not outlive the run.
    settings
        What is shown beside the run.

    Raises
    ------
    UserError
        The package is not installed.
    """
    if name == "none":
        return None
    if find_spec(name) is None:
        raise UserError(
            f"tracker: {name} is not installed; pip install 'kava[{name}]', or set tracker: none "
            "(metrics.jsonl is written always)"
        )
    run = {"name": "/".join(folder.parts[-4:]), "config": settings.model_dump()}
    if name == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", folder)
    elif name == "wandb":
        tracker = WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), dir=str(folder), **run)
    else:
        tracker = TrackioTracker(PROJECT, **run)
    tracker.start()
    return tracker

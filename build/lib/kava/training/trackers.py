"""Where logged steps go besides `metrics.jsonl`: trackers that the Trainer knows, each an optional package."""

import os
from importlib.util import find_spec
from pathlib import Path

from kava.errors import UserError

PROJECT = "kava"


def prepare_tracker(tracker: str, folder: Path) -> str:
    """Tell a tracker where a run belongs.

    Parameters
    ----------
    tracker
        `none`, or the name of a package.
    folder
        Of the stage. The Trainer's own default lies below the checkpoints, which do not outlive the run.

    Returns
    -------
    str
        Name of the run: experiment, arm, seed, stage.

    Raises
    ------
    UserError
        The package is not installed.
    """
    if tracker != "none":
        if find_spec(tracker) is None:
            raise UserError(
                f"tracker: {tracker} is not installed; pip install 'kava[{tracker}]', or set tracker: none "
                "(metrics.jsonl is written always)"
            )
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
        os.environ["WANDB_DIR"] = str(folder)
        os.environ.setdefault("WANDB_PROJECT", PROJECT)
    return "/".join(folder.parts[-4:])

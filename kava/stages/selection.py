"""Options of the stages that run once per arm and seed."""

import argparse

from kava.config.jobs import Jobs
from kava.errors import UserError

ARM_OPTIONS = {"arm": "name of the arm", "seed": "seed of the run (default: the first configured)"}


def arm_and_seed(jobs: Jobs, arguments: argparse.Namespace) -> tuple[str, int]:
    """The chosen arm, and the chosen or first seed."""
    if arguments.arm is None:
        raise UserError(f"choose an arm with --arm; arms are: {', '.join(jobs.config.arms)}")
    try:
        seed = int(arguments.seed) if arguments.seed is not None else jobs.config.seeds[0]
    except ValueError:
        raise UserError(f"--seed {arguments.seed!r} is no whole number") from None
    return arguments.arm, seed

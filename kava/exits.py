"""One way to fail: what a user can fix ends a process with one line and a status, without a traceback."""

import io
import logging
import signal
import sys
from collections.abc import Callable
from typing import Final

from kava.errors import Interrupted, UserError
from kava.faults import faults_as_sentences
from kava.terminal.noise import leave_out_noise

INTERRUPTED: Final = 128 + signal.SIGINT


def exit_status(program: str, work: Callable[[], int | None]) -> int:
    """Run a command and return its status: what `work` returns, 0 for None, 1 after a `UserError`, 130 after Ctrl-C.

    What a user can fix is printed on stderr as one line.
    """
    leave_out_noise()
    try:
        with faults_as_sentences():
            return work() or 0
    except Interrupted as error:
        line, status = f"{program}: {error}", INTERRUPTED
    except KeyboardInterrupt:
        line, status = f"{program}: interrupted; what is finished is kept: run again to go on", INTERRUPTED
    except UserError as error:
        line, status = f"{program}: error: {error}", 1
    print(line, file=sys.stderr)
    return status


def log_to_stderr() -> None:
    """Status lines go to stderr, one sentence each; libraries say what is a warning at least."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("httpx", "lm_eval", "datasets", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def print_whatever_the_locale() -> None:
    """Characters that the locale's encoding lacks are printed as escapes; they are no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

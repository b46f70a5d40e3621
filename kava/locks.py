"""Locks between processes that die with their holder, so that a killed run leaves none behind."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger("kava")


class Claim:
    """A lock that is held until it is released or the process ends, however it ends."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def release(self) -> None:
        self._file.close()


def claim(path: Path) -> Claim | None:
    """Take a lock if no live process holds it; the file names the holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return Claim(file)


def holder(path: Path) -> str:
    """Who held a lock last."""
    return path.read_text() or "another process"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock; wait, and say for whom, while another process has it."""
    held = claim(path)
    if held is None:
        log.info("waiting for %s, which works in %s", holder(path), path.parent)
        with path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        return
    try:
        yield
    finally:
        held.release()

"""Locks between processes that die with their holder, so that a killed run leaves none behind."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from kava.faults import may_not_write

log = logging.getLogger("kava")

# Shared by all who work in a store, from their start to their end; who would delete it needs it alone.
PRESENCE: Final = "locks/presence.lock"


class Claim:
    """A lock that is held until it is released or the process ends, however it ends."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def release(self) -> None:
        self._file.close()

    def fileno(self) -> int:
        """Descriptor that holds the lock; a process that inherits it holds the lock too."""
        return self._file.fileno()


def claim(path: Path) -> Claim | None:
    """Take a lock if no live process holds it; the file names the holder.

    Raises
    ------
    PermissionError
        The lock is not there, and this user may not make it.
    """
    file = _open(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    _sign(file)
    return Claim(file)


@contextmanager
def present(path: Path) -> Iterator[None]:
    """Hold a lock together with all others that are present; who may not make it can only read, and needs none."""
    try:
        file = _open(path)
    except OSError as error:
        if not may_not_write(error):
            raise
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        _sign(file)
        yield


def _open(path: Path) -> IO[str]:
    """A lock's file, made if it is missing; for reading alone where another user made it, which is enough to lock it.

    On NFS it is not: there only what may be written is locked, and the error says so.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        if not may_not_write(error) or not os.access(path, os.R_OK, effective_ids=True):
            raise
        return path.open(encoding="utf-8")


def _sign(file: IO[str]) -> None:
    if not file.writable():
        return
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def holder(path: Path) -> str:
    """Who held a lock last."""
    return path.read_text(encoding="utf-8") or "another process"


def live_holder(path: Path) -> str | None:
    """Who holds a lock at this moment; None if nobody does."""
    if not path.is_file():
        return None
    with _open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return holder(path)
    return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock; wait, and say for whom, while another process has it.

    Raises
    ------
    PermissionError
        The lock is not there, and this user may not make it.
    """
    held = claim(path)
    if held is None:
        log.info("waiting for %s, which works in %s", holder(path), path.parent)
        with _open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _sign(file)
            yield
        return
    try:
        yield
    finally:
        held.release()

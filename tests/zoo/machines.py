"""Machines that users bring: permissions, locales, no home folder, another umask."""

import ctypes
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Numbers of capabilities(7): to pass over the permissions of files, to read all of them, to act as every file's owner.
_DAC_OVERRIDE, _DAC_READ_SEARCH, _FOWNER = 1, 2, 3
_VERSION_3 = 0x20080522
OTHER_USER = 54321


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@contextmanager
def permissions_count() -> Iterator[None]:
    """Make root obey the permissions of files, as everybody else does; threads that start inside obey them, too.

    Processes that start inside do not.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())
    before = sets[0].effective
    sets[0].effective &= ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH | 1 << _FOWNER)
    assert libc.capset(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())


def of_another_user(path: Path) -> Path:
    """Give a file or folder, and all below it, to another user; its bits stay as they are. Skips without root."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for below in (path, *path.rglob("*")):
        os.chown(below, OTHER_USER, OTHER_USER)
    return path


@contextmanager
def with_mode(path: Path, mode: int) -> Iterator[Path]:
    """A file or folder with other permissions, which count; as before at the end, so that it can be deleted."""
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode)
    try:
        with permissions_count():
            yield path
    finally:
        path.chmod(before)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder in which nothing can be written, at any depth."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    files = [path for path in folder.rglob("*") if path.is_file()]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (*files, *folders)}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with permissions_count():
            yield folder
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Another umask for this process."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def ascii_locale() -> dict[str, str]:
    """Environment of a process whose locale knows ASCII alone; without the last two Python would help itself."""
    return {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def latin_locale(folder: Path) -> dict[str, str]:
    """Environment of a process in an ISO-8859-1 locale, which is compiled into a folder. Skips where it cannot be."""
    if not shutil.which("localedef") or not Path("/usr/share/i18n/charmaps").is_dir():
        pytest.skip("localedef and its sources are not here")
    name = folder / "de_DE.ISO-8859-1"
    command = ["localedef", "-c", "-i", "de_DE", "-f", "ISO-8859-1", str(name)]
    subprocess.run(command, check=False, capture_output=True)  # it warns by its status
    assert (name / "LC_CTYPE").is_file()
    return {"LOCPATH": str(folder), "LC_ALL": name.name, "LANG": name.name, "PYTHONUTF8": "0"}


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as one of a uid without a name, and without the variables that tell a home folder."""
    for variable in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", nobody)

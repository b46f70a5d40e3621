"""What the machine refuses, as one sentence: no permission, no room, a name that is too long."""

import errno
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kava.errors import UserError

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
# Wordings of libraries that keep no error number: safetensors, torch, tokenizers, Arrow.
_WORDS: Final = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EACCES: "Permission denied",
    errno.EROFS: "Read-only file system",
}
_OTHERS: Final = {
    errno.ENAMETOOLONG: "the name {} is longer than the file system allows; choose a shorter one",
    errno.ENOTDIR: "{} lies below something that is a file and no folder; name another place",
    errno.EISDIR: "{} is a folder where a file is expected; name another place, or move it away",
    errno.ELOOP: "{} is a link that leads in a circle; correct the link",
    errno.EMFILE: "the limit of open files is reached at {}; raise it with `ulimit -n`",
    errno.ESTALE: "the file system of {} has gone (a stale handle); mount it again",
    errno.EIO: "the disk of {} cannot be read or written (an input/output error); look at the system's log",
}


@contextmanager
def faults_as_sentences() -> Iterator[None]:
    """Turn what the machine refuses into `UserError`; everything else passes as it is."""
    try:
        yield
    except UserError:
        raise
    # Libraries wrap what the system says in exceptions of their own, of any type.
    except Exception as error:
        if sentence := machine_fault(error):
            raise UserError(sentence) from error
        raise


def machine_fault(error: BaseException) -> str | None:
    """A sentence with the path, and what to do; None for an error that is not the machine's."""
    chain = list(_causes(error))
    for cause in chain:
        number = cause.errno if isinstance(cause, OSError) and cause.errno else _number(cause)
        path = Path(os.fsdecode(cause.filename)) if isinstance(cause, OSError) and cause.filename else None
        if number in _NO_ROOM:
            return f"the disk is full ({cause}); make room and run again: what is finished is kept"
        if number in _NOT_ALLOWED:
            return _not_allowed(path, number == errno.EROFS) if path else _unnamed(cause)
        if number in _OTHERS and path:
            return _OTHERS[number].format(path)
    return None


def may_not_write(error: OSError) -> bool:
    """Whether an error says that this user, or anybody, may not write there."""
    return error.errno in _NOT_ALLOWED


def not_writable(folder: Path) -> str | None:
    """Why no file can be made in a folder, which may not be there yet; None if one can."""
    there = _nearest(folder)
    return None if there.is_dir() and _may(there, os.W_OK | os.X_OK) else _not_written(folder)


def user_name(uid: int) -> str:
    """Name of a user; a container may run as one that has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _not_allowed(path: Path, read_only_system: bool) -> str:
    if read_only_system:
        return f"{path} cannot be written: its file system is read-only; name a place that can be written to"
    me, there = user_name(os.geteuid()), _nearest(path)
    owner = user_name(there.stat().st_uid)
    if there == path.absolute():
        if not _may(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            return (
                f"{path} cannot be read by {me} (it is {owner}'s); give the right to read it with "
                f"`chmod {'-R a+rX' if path.is_dir() else 'a+r'} {path}`, or name another place"
            )
    elif not _may(there, os.X_OK):
        return (
            f"{path} cannot be reached by {me}, who may not enter {there} ({owner}'s); give the right to with "
            f"`chmod a+rx {there}`, or name another place"
        )
    return _not_written(path)


def _not_written(path: Path) -> str:
    there = _nearest(path)
    uid = there.stat().st_uid
    what = f"write {'in' if there.is_dir() else 'to'} {there} ({user_name(uid)}'s)"
    if uid == os.geteuid():
        remedy = f"or give yourself the right to with `chmod u+w {there}`"
    else:
        remedy = (
            "or have its owner share it: `chmod -R g+rwX` on all of it and `chmod g+s` on its folders, and `umask 002` "
            "for all who work there"
        )
    return (
        f"{path} cannot be written, since {user_name(os.geteuid())} may not {what}; write elsewhere (cache_dir or "
        f"$KAVA_CACHE for token sets and stores, another working folder for results/), {remedy}"
    )


def _unnamed(cause: BaseException) -> str:
    said = " ".join(str(cause).split())
    return f"a file may not be read or written ({said}); correct the permissions, or name another place"


def _nearest(path: Path) -> Path:
    """A path, or the nearest folder above it that can be seen."""
    path = path.absolute()
    return next(above for above in (path, *path.parents) if _may(above, os.F_OK))


def _may(path: Path, how: int) -> bool:
    # As the user that the process acts for, who need not be the one that started it.
    return os.access(path, how, effective_ids=True)


def _number(cause: BaseException) -> int | None:
    text = str(cause)
    return next((number for number, words in _WORDS.items() if words in text), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)

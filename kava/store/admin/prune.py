"""What of a cache folder may go, and deleting it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kava.errors import UserError
from kava.locks import PRESENCE, claim
from kava.store.admin.inventory import KINDS, SHARED_MARK, Entry, entries, total_bytes
from kava.store.admin.usage import Usage, token_set, token_sets_of_stores


@dataclass(frozen=True)
class Candidate:
    """Something to delete: an entry, or the quarantine of one."""

    entry: Entry
    quarantine_only: bool
    reason: str

    @property
    def path(self) -> Path:
        return self.entry.folder / "quarantine" if self.quarantine_only else self.entry.folder

    @property
    def bytes(self) -> int:
        return total_bytes(self.path)


def named(cache: Path, keys: Sequence[str], used: Usage) -> list[Candidate]:
    """Entries by key, by name-key, or with `/quarantine` after either for that alone.

    Raises
    ------
    UserError
        A key that is not there.
    """
    found, there = [], entries(cache)
    for key in keys:
        wanted, _, part = key.partition("/")
        match = [entry for entry in there if wanted in (entry.key, entry.name)]
        if not match or part not in ("", "quarantine") or (part and not (match[0].folder / part).is_dir()):
            known = ", ".join(entry.name for entry in there) or "none"
            raise UserError(f"{cache} has no {key!r}; there are: {known}")
        users = used.of(match[0])
        found.append(Candidate(match[0], bool(part), f"named; used by {', '.join(users)}" if users else "named"))
    return found


def unused(cache: Path, used: Usage) -> list[Candidate]:
    """Quarantines, and what neither the configuration nor an experiment uses.

    While a run does not say what it reads, only quarantines are proposed: anything might be that run's.
    """
    found = []
    of_stores = token_sets_of_stores(cache)
    for entry in entries(cache):
        # What is unfinished may be wanted by a run that says so only at its end.
        unknown = entry.kind != "tokens" and not entry.sealed
        if entry.kind == "tokens" and token_set(entry) in of_stores:
            continue
        if not used.of(entry) and not used.silent and not unknown:
            found.append(Candidate(entry, False, "used by no configuration or experiment here"))
        elif (entry.folder / "quarantine").is_dir():
            found.append(Candidate(entry, True, "put aside: damaged or foreign"))
    return found


def is_own(cache: Path, results: Path) -> bool:
    """Whether a cache folder is the checkout's own, so that nobody else can depend on what lies there."""
    if (cache / SHARED_MARK).exists():
        return False
    return cache.resolve() == Path.cwd().resolve() / results and not any((cache / kind).is_symlink() for kind in KINDS)


def delete(candidate: Candidate) -> None:
    """Delete a candidate, the manifest first, so that a kill leaves something unfinished and not something damaged.

    Raises
    ------
    UserError
        A live process works in the folder.
    """
    entry = candidate.entry
    who = entry.busy
    held = None if who else claim(entry.folder / (PRESENCE if entry.kind == "teacher_kv" else ".lock"))
    if held is None:
        raise UserError(f"{who or 'another process'} works in {entry.folder}; wait for it or stop it, then run again")
    try:
        if not candidate.quarantine_only:
            (entry.folder / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(candidate.path)
    finally:
        held.release()

"""Delete what nobody uses from the cache folder; a dry run unless --delete is given.

    kava store prune                   what would go, and how many bytes
    kava store prune --delete
    kava store prune KEY --delete      this one; KEY/quarantine for what was put aside in it

Without keys: quarantines, and the stores, token sets and references that neither the configuration nor any experiment
under results/ uses. In a cache folder that others may share nothing goes but what is named. A store in which a process
works is never deleted; one that is being trained from is, if you name it.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from kava.commandline import CACHE, CONFIGURATION, JSON, load_jobs, option, run_command
from kava.errors import UserError
from kava.text import size

if TYPE_CHECKING:
    from kava.store.admin.prune import Candidate


def main(argv: list[str] | None = None) -> int:
    keys = option("keys", nargs="*", metavar="KEY", help="key, or name-key, as `kava store ls` shows it")
    delete = option("--delete", action="store_true", help="delete; without it nothing is changed")
    return run_command("kava store prune", __doc__, argv, _prune, keys, *CONFIGURATION, CACHE, delete, JSON)


def _prune(arguments: argparse.Namespace) -> None:
    from kava.store.admin.prune import delete, is_own, named, unused
    from kava.store.admin.usage import usage

    jobs = load_jobs(arguments)
    cache = arguments.cache_dir or jobs.cache
    used = usage(jobs)
    notes = []
    if arguments.keys:
        candidates = named(cache, arguments.keys, used)
    elif is_own(cache, jobs.results):
        candidates = unused(cache, used)
        if used.silent:
            notes.append(
                f"{used.silent[0]} ({len(used.silent)} runs) does not say what it reads: unfinished, or made by an "
                "older version; stores, token sets and references go by KEY only"
            )
    else:
        candidates = []
        notes.append(f"others may use {cache}: nothing is proposed there; name what may go by KEY (`kava store ls`)")
    for note in notes:
        print(note, file=sys.stderr)
    failures = []
    rows: list[dict[str, Any]] = []
    for candidate in candidates:
        rows.append(_row(candidate))
        if arguments.delete:
            try:
                delete(candidate)
                rows[-1]["deleted"] = True
            except UserError as error:
                failures.append(str(error))
    print(json.dumps({"candidates": rows, "notes": notes}) if arguments.json else as_text(rows, arguments.delete))
    if failures:
        raise UserError("; ".join(failures))


def _row(candidate: "Candidate") -> dict[str, Any]:
    return {
        "path": str(candidate.path),
        "key": candidate.entry.key,
        "bytes": candidate.bytes,
        "reason": candidate.reason,
        "busy": candidate.entry.busy,
        "deleted": False,
    }


def as_text(rows: list[dict[str, Any]], delete: bool) -> str:
    """One line for each, and the sum."""
    gone = [row for row in rows if row["deleted"] == delete and not (row["busy"] and not delete)]
    lines = [f"{'deleted' if row['deleted'] else 'kept, in use' if row['busy'] else 'would delete'}  {row['path']}  "
             f"({size(row['bytes'])}; {row['reason']})" for row in rows]  # fmt: skip
    total = size(sum(row["bytes"] for row in gone))
    lines.append(f"{total} {'freed' if delete else 'to free; --delete does it' if gone else 'to free'}")
    return "\n".join(lines)

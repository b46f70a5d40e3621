"""List the KV stores, token sets and reference evaluations of the cache folder.

kava store ls
kava store ls --cache-dir /data/kava --json
"""

import argparse
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kava.commandline import CACHE, CONFIGURATION, JSON, load_jobs, run_command
from kava.text import size, table

if TYPE_CHECKING:
    from kava.store.admin.inventory import Entry
    from kava.store.admin.usage import Usage


def main(argv: list[str] | None = None) -> int:
    return run_command("kava store ls", __doc__, argv, _list, *CONFIGURATION, CACHE, JSON)


def _list(arguments: argparse.Namespace) -> None:
    from kava.store.admin.inventory import entries
    from kava.store.admin.usage import usage

    jobs = load_jobs(arguments)
    cache = arguments.cache_dir or jobs.cache
    used = usage(jobs)
    rows = [row(entry, used) for entry in entries(cache)]
    if arguments.json:
        print(json.dumps(rows))
    elif not rows:
        print(f"{cache} holds no stores, token sets or references")
    else:
        print(as_text(rows))


def row(entry: "Entry", used: "Usage") -> dict[str, Any]:
    """Facts of an entry as JSON values."""
    return {
        "kind": entry.kind,
        "name": entry.name,
        "key": entry.key,
        "path": str(entry.folder),
        "codec": entry.codec,
        "tokens": entry.tokens,
        "bytes": entry.bytes,
        "ratio": entry.ratio,
        "sealed": entry.sealed,
        "shards": dict(zip(("finished", "count"), entry.shards, strict=True)) if entry.shards else None,
        "state": entry.state,
        "modified": datetime.fromtimestamp(entry.modified).isoformat(timespec="seconds"),
        "used_by": used.of(entry),
        "used_by_configuration": entry.name in used.planned,
    }


def as_text(rows: list[dict[str, Any]]) -> str:
    """A table for a reader."""
    header = ("KIND", "NAME-KEY", "CODEC", "TOKENS", "SIZE", "OF BF16", "STATE", "MODIFIED", "USED BY")
    lines = [
        (
            r["kind"],
            r["name"],
            r["codec"] or "",
            "" if r["tokens"] is None else f"{r['tokens']:,}",
            size(r["bytes"]),
            "" if r["ratio"] is None else f"{r['ratio']:.4f}",
            r["state"],
            r["modified"].replace("T", " ")[:16],
            ", ".join(r["used_by"]),
        )
        for r in rows
    ]
    return table([header, *lines])

"""Check a KV store from end to end: every file against its record, every chunk decoded, and whose store it is.

    kava store verify results/teacher_kv/NAME-KEY

Reads all of it. Prints one line if all is good; otherwise every problem, and exits with status 1.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kava.commandline import command_parser, exit_status
from kava.errors import UserError

if TYPE_CHECKING:
    from kava.store.admin.verify import Verification


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("kava store verify", __doc__)
    parser.add_argument("path", type=Path, help="folder of the store, or its manifest.json")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    arguments = parser.parse_args(argv)
    return exit_status("kava store verify", lambda: _verify(arguments))


def _verify(arguments: argparse.Namespace) -> None:
    from kava.store.admin.describe import store_folder
    from kava.store.admin.verify import verify

    folder = store_folder(arguments.path)
    found = verify(folder)
    if arguments.json:
        print(json.dumps({"store": folder.name} | found.to_dict()))
    elif not found.problems:
        print(good(found))
    if found.problems:
        for problem in found.problems:
            print(problem, file=sys.stderr)
        raise UserError(
            f"{folder.name} has {len(found.problems)} problem{'s' * (len(found.problems) > 1)}; run extract with the "
            "store's configuration: it puts the damage aside, writes it anew and keeps the rest"
        )


def good(found: "Verification") -> str:
    """The one line of a sound store."""
    return f"{found.shards} shards, {found.chunks} chunks, {found.bytes} bytes: all good"


if __name__ == "__main__":
    sys.exit(main())

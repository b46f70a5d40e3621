"""Check a KV store from end to end: every file against its record, every chunk decoded, and whose store it is.

    kava store verify results/teacher_kv/NAME-KEY

Reads all of it. Prints one line if all is good; otherwise every problem, and exits with status 1.
"""

import argparse
import json
import sys

from kava.commandline import JSON, STORE, run_command
from kava.errors import UserError


def main(argv: list[str] | None = None) -> int:
    return run_command("kava store verify", __doc__, argv, _verify, STORE, JSON)


def _verify(arguments: argparse.Namespace) -> None:
    from kava.store.admin.describe import store_folder
    from kava.store.admin.verify import verify

    folder = store_folder(arguments.path)
    result = verify(folder)
    if arguments.json:
        print(json.dumps({"store": folder.name} | result.to_dict()))
    elif not result.problems:
        print(f"{result.shards} shards, {result.chunks} chunks, {result.bytes} bytes: all good")
    if result.problems:
        for problem in result.problems:
            print(problem, file=sys.stderr)
        raise UserError(
            f"{folder.name} has {len(result.problems)} problem{'s' * (len(result.problems) > 1)}; run extract with the "
            "store's configuration: it puts the damage aside, writes it anew and keeps the rest"
        )

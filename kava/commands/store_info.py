"""Show what a KV store holds and how large it is, finished or not.

kava store info results/teacher_kv/NAME-KEY
"""

import argparse
import json
from typing import Any

from kava.commandline import JSON, STORE, run_command
from kava.text import size, table


def main(argv: list[str] | None = None) -> int:
    return run_command("kava store info", __doc__, argv, _info, STORE, JSON)


def _info(arguments: argparse.Namespace) -> None:
    from kava.store.admin.describe import describe, store_folder

    facts = describe(store_folder(arguments.path))
    print(json.dumps(facts) if arguments.json else as_text(facts))


def as_text(facts: dict[str, Any]) -> str:
    """The facts of `describe` for a reader."""
    shards, codec = facts["shards"], facts["codec"]
    bits = f", {codec['bits_per_value']:.2f} bits per value" if "bits_per_value" in codec else ""
    state = "sealed" if facts["sealed"] else "unfinished; run extract to go on"
    rows = [
        ("name", facts["name"]),
        ("key", facts["key"]),
        ("state", f"{state}; {shards['finished']} of {shards['count']} shards"),
        ("teacher", _settings(facts["teacher"])),
        ("data", _settings(facts["data"])),
        ("keys", facts["keys"]),
        ("codec", _settings({k: v for k, v in codec.items() if k != "bits_per_value"}) + bits),
        ("selection", _settings(facts["selection"])),
        ("signals", _settings(facts["signals"])),
        ("geometry", ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in facts["geometry"].items())),
        ("examples", ", ".join(f"{count} {split}" for split, count in facts["examples"].items())),
        ("tokens", f"{facts['tokens']:,}"),
        ("size", f"{size(facts['bytes'])}, {facts['ratio']:.4f} of {size(facts['raw_bf16_bytes'])} raw bf16"),
        ("libraries", _settings(facts["libraries"] or {})),
    ]
    arrays = [(f"  {name}", size(count)) for name, count in facts["arrays"].items()]
    aside = [
        (f"  {move['number']}", f"{size(move['bytes'])}: {', '.join(move['files'])}") for move in facts["quarantined"]
    ]
    rows += [("arrays", ""), *arrays, ("quarantine", "" if aside else "empty"), *aside]
    return table(rows)


def _settings(value: Any) -> str:
    """Nested settings on one line; hashes are cut to what tells them apart."""
    if not isinstance(value, dict):
        return value[:12] if isinstance(value, str) and len(value) == 64 else str(value).replace("\n", "\\n")
    return ", ".join(f"{name}: {{{_settings(v)}}}" if isinstance(v, dict) else f"{name}: {_settings(v)}"
                     for name, v in value.items() if v is not None)  # fmt: skip

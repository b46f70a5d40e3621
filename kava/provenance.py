"""Where a report comes from: versions, commit, hardware, command. No host or user names."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from kava.config.load import REPOSITORY
from kava.files import read_json
from kava.text import from_outside

PACKAGES = (
    "torch", "transformers", "bitsandbytes", "accelerate", "datasets", "lm_eval", "zarr", "numcodecs", "snakemake"
)  # fmt: skip


def provenance(store_manifest: Path) -> dict[str, Any]:
    """Nested mapping of strings and numbers for the report; models and data as the store names them."""
    key = read_json(store_manifest)["spec"]
    return {
        "code": {"kava": version("kava"), "commit": _commit()},
        "command": command(),
        "versions": {"python": platform.python_version(), **library_versions(PACKAGES)},
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpu": _gpu(),
        },
        "teacher": key["teacher"],
        "data": key["tokens"]["data"],
        "tokenizer": key["tokens"]["tokenizer"],
    }


def command() -> str:
    """What a person typed: Snakemake's command line inside its jobs, else that of `kava`."""
    return from_outside(os.environ.get("KAVA_COMMAND") or shlex.join(["kava", *sys.argv[1:]]))


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed version of each package."""
    return {name: version(name) for name in names}


def _commit() -> str:
    """Commit of the checkout, with `-dirty` if it was changed; `unknown` outside a checkout."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != REPOSITORY:  # a package inside somebody else's checkout
            return "unknown"
        commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True).stdout.strip()


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"

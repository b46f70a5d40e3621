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

PACKAGES = (
    "torch", "transformers", "bitsandbytes", "accelerate", "datasets", "lm_eval", "zarr", "numcodecs", "snakemake"
)  # fmt: skip


def provenance(store_manifest: Path) -> dict[str, Any]:
    """Nested mapping of strings and numbers for the report.

    Parameters
    ----------
    store_manifest
        Manifest of the teacher store, whose spec names models and data by revision or hash.
    """
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
    return os.environ.get("KAVA_COMMAND") or shlex.join(["kava", *sys.argv[1:]])


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed version of each package."""
    return {name: version(name) for name in names}


def _commit() -> str:
    """Commit of the checkout, with `-dirty` if it was changed; `unknown` outside a checkout."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout
        if Path(top.strip()) != REPOSITORY:  # an installed package inside somebody else's checkout
            return "unknown"
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("-dirty" if changed.strip() else "")


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"

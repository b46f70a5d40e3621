"""Remove the lock that a killed Snakemake left behind, and only then.

    kava unlock

A plain run after `kill -9` meets a stale lock. It is removed unless a live Snakemake works in this folder.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import psutil

from kava.commandline import option, run_command
from kava.errors import UserError


def main(argv: list[str] | None = None) -> int:
    snakefile = option("--snakefile", default="Snakefile", help="default: %(default)s")
    return run_command("kava unlock", __doc__, argv, _unlock, snakefile)


def _unlock(arguments: argparse.Namespace) -> int:
    if not any(Path(".snakemake/locks").glob("*")):
        return 0
    owners = live_snakemakes(Path.cwd())
    if owners:
        raise UserError(f"Snakemake runs here (process {owners[0]}); wait for it or stop it")
    command = [sys.executable, "-m", "snakemake", "--snakefile", arguments.snakefile, "--unlock", "--cores", "1"]
    return subprocess.run(command, check=False).returncode


def live_snakemakes(folder: Path) -> list[int]:
    """Process ids of Snakemake runs whose working directory is the folder."""
    return [
        process.info["pid"]
        for process in psutil.process_iter(["pid", "cmdline", "cwd"])
        if any(Path(word).name == "snakemake" for word in process.info["cmdline"] or [])
        and process.info["cwd"] == str(folder)
    ]

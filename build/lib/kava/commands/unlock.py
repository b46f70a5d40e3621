"""Remove the lock that a killed Snakemake left behind, and only then.

    kava unlock

A plain run after `kill -9` meets a stale lock. It is removed unless a live Snakemake works in this folder.
"""

import subprocess
import sys
from pathlib import Path

import psutil

from kava.commandline import command_parser


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("kava unlock", __doc__)
    parser.add_argument("--snakefile", default="Snakefile", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if not any(Path(".snakemake/locks").glob("*")):
        return 0
    owners = live_snakemakes(Path.cwd())
    if owners:
        print(f"kava unlock: error: Snakemake runs here (process {owners[0]}); wait for it or stop it", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "snakemake", "--snakefile", arguments.snakefile, "--unlock", "--cores", "1"]
    return subprocess.run(command, check=False).returncode


def live_snakemakes(folder: Path) -> list[int]:
    """Process ids of Snakemake runs whose working directory is the folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        if any(Path(word).name == "snakemake" for word in command) and process.info["cwd"] == str(folder):
            found.append(process.info["pid"])
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Run Snakemake on a demo of seconds, in a folder of its own."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
TRAINING = {"steps": 4, "batch_size": 8, "log_every": 2, "save_every": 2}
TINY = {
    "data": {"train": 64, "validation": 12, "test": 12},
    "kv": {"shard_tokens": 512},
    "pretrain": TRAINING,
    "distill": TRAINING,
    "evaluation": {"batch_size": 12, "max_new_tokens": 8},
}


def command(folder: Path, *arguments: str, settings: dict | None = None) -> list[str]:
    """Snakemake command line for the tiny demo in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY | (settings or {})))
    return [
        sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(folder),
        "--cores", "1", "--configfile", str(file), *arguments,
    ]  # fmt: skip


def snakemake(folder: Path, *arguments: str, settings: dict | None = None) -> str:
    """Run it and return what it printed; fails with the output if it fails."""
    done = subprocess.run(command(folder, *arguments, settings=settings), capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output + logs(folder)
    return output


def planned(folder: Path, *arguments: str, settings: dict | None = None) -> set[str]:
    """Jobs of a dry run, `rule` or `rule arm`."""
    output = snakemake(folder, "--dry-run", *arguments, settings=settings)
    if "Nothing to be done" in output:
        return set()
    jobs = set()
    for block in re.split(r"\n(?=(?:local)?rule )", output)[1:]:
        name = re.match(r"(?:local)?rule (\w+)", block)
        arm = re.search(r"wildcards: arm=(\w+)", block.split("\n\n")[0])
        assert name
        jobs.add(name[1] + (f" {arm[1]}" if arm else ""))
    return jobs


def logs(folder: Path) -> str:
    return "".join(
        f"\n== {log}\n{log.read_text()[-2000:]}" for log in folder.rglob("*.log") if ".snakemake" not in str(log)
    )

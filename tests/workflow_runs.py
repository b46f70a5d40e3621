"""Run a plan, or Snakemake on a demo of seconds, in a folder of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
import yaml

from kava.bench import bench_store
from kava.bench.workspace import free, quiet
from kava.config.job import Runtime
from kava.config.jobs import REFERENCES, Jobs
from kava.config.load import REPOSITORY
from kava.data import tokenize
from kava.evaluation import evaluate
from kava.report import write as report
from kava.teacher import extract
from kava.terminal.noise import leave_out_noise
from kava.training import distill, pretrain

TRAINING = {"steps": 4, "batch_size": 8, "log_every": 2, "save_every": 2}
TINY = {
    "data": {"train": 64, "validation": 12, "test": 12},
    "kv": {"shard_tokens": 512},
    "pretrain": TRAINING,
    "distill": TRAINING | {"steps": 20},
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


def run_in_this_process(plan: Jobs, runtime: Runtime, with_report: bool = True) -> None:
    """All stages of a plan, one after the other; as processes of their own they would import for minutes."""
    runs = [(arm, seed) for arm in plan.config.arms for seed in plan.config.seeds]
    jobs = [(tokenize.run, plan.tokenize), (extract.run, plan.extract)]
    jobs += [(bench_store.run, plan.bench)] if plan.config.report.codecs else []
    jobs += [(evaluate.run, plan.reference(role)) for role in REFERENCES]
    for arm, seed in runs:
        if plan.config.arms[arm].aligner:
            jobs.append((pretrain.run, plan.pretrain(arm, seed)))
        jobs += [(distill.run, plan.distill(arm, seed)), (evaluate.run, plan.evaluate(arm, seed))]
    # pytest keeps log records: one of them has an exception, with it the frames that loaded the teacher, and that.
    leave_out_noise()
    with quiet():
        for run, job in [*jobs, *([(report.run, plan.report)] if with_report else [])]:
            free(torch.device("cpu"))
            run(job, runtime)


# The plugin asks Slurm after 1, 12, 33, 64 s, and so on up to every three minutes; a test asks every second.
OFTEN = """
from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor
Executor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, value: None)
main()
"""


def start_on_slurm(folder: Path, environment: dict[str, str], settings: dict) -> subprocess.Popen:
    """Start Snakemake with the profile for Slurm; it prints to `snakemake.out` in the folder."""
    arguments = command(
        folder, "--workflow-profile", str(REPOSITORY / "workflow/profiles/slurm"), "--latency-wait", "5",
        "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1", settings=settings,
    )  # fmt: skip
    with (folder / "snakemake.out").open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-c", OFTEN, *arguments[3:]], stdout=out, stderr=out, env=os.environ | environment
        )


def slurm_plugin() -> str | None:
    """PYTHONPATH with which Snakemake knows Slurm, `make check` puts the plugin apart; None if it is not there."""
    apart = Path(sys.prefix) / "slurm"
    known = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    if find_spec("snakemake_executor_plugin_slurm"):
        return os.pathsep.join(known)
    return os.pathsep.join([*known, str(apart)]) if apart.is_dir() else None


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


def without_cost(value: object) -> object:
    """A part of the report without what differs from run to run: seconds, and memory."""
    if isinstance(value, dict):
        costs = ("seconds", "memory_mib", "per_second", "wait_share")
        return {name: without_cost(of_name) for name, of_name in value.items() if not name.endswith(costs)}
    return value


def kill_when(folder: Path, target: str, reached: Callable[[], bool]) -> None:
    """Start Snakemake, wait for a condition, and kill it and all its children with SIGKILL."""
    unlock(folder)
    process = subprocess.Popen(
        command(folder, "--rerun-incomplete", "--", target),
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(reached, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(reached: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline, "the condition was never reached"
        time.sleep(0.01)


def suspend(stage: str, folder: Path) -> None:
    """Stop a stage that runs in a folder where it is, so that it cannot end before it is killed."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if f"kava.stages.{stage}" in (process.info["cmdline"] or ()) and process.info["cwd"] == str(folder):
            process.suspend()
            return
    raise AssertionError(f"no {stage} runs in {folder}")


def unlock(folder: Path) -> None:
    command_line = [sys.executable, "-m", "kava", "unlock", "--snakefile", str(REPOSITORY / "Snakefile")]
    subprocess.run(command_line, cwd=folder, check=True)


def contents(path: Path) -> dict[str, bytes]:
    """Relative name → bytes of what a run computes: no logs, timings or benchmarks."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    files = (
        p
        for p in path.rglob("*")
        if p.is_file() and not p.name.endswith((".log", ".lock", "cost.json", "benchmark.jsonl"))
    )
    return {str(p.relative_to(path)): p.read_bytes() for p in files}

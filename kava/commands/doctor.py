"""Look whether this machine can run a preset, before it runs.

    kava doctor
    kava doctor --preset qwen2.5-8gb --json

One line for each thing that a run needs, with what fixes it: Python and packages against their pins, Snakemake, models,
data and its rows, the hub if something has to come from it, whether teacher and student go together and the test
questions fit their positions, torch and CUDA, the GPU and its free memory, bitsandbytes by a real 4-bit product, memory
and disk against what the run takes and downloads. Nothing is downloaded. Exit status 1 if the preset cannot run here,
else 0. Whether every stage fits the GPU is what `kava plan` says.
"""

import argparse
import json
from collections.abc import Iterator

from kava.commandline import CONFIGURATION, JSON, load_jobs, run_command, same_configuration
from kava.config.load import REPOSITORY
from kava.doctor.check import Check, fail, ok
from kava.errors import UserError


def main(argv: list[str] | None = None) -> int:
    return run_command("kava doctor", __doc__, argv, _examine, *CONFIGURATION, JSON)


def _examine(arguments: argparse.Namespace) -> int:
    """Print each line as soon as it is known; 1 if one of them fails."""
    checks = []
    for check in _checks(arguments):
        checks.append(check)
        if not arguments.json:
            print(check, flush=True)
    failed = [check.name for check in checks if check.status == "fail"]
    if arguments.json:
        print(json.dumps({"can_run": not failed, "checks": [check.to_json() for check in checks]}))
    else:
        print(f"\ncannot run here: {', '.join(failed)}" if failed else "\ncan run here")
    return int(bool(failed))


def _checks(arguments: argparse.Namespace) -> Iterator[Check]:
    from kava.doctor import software

    project = software.project_of(REPOSITORY)
    yield software.python(project)
    packages = software.packages(project, REPOSITORY / "constraints.txt")
    yield packages
    yield software.snakemake(REPOSITORY)
    try:
        jobs = load_jobs(arguments)
        _ = jobs.report  # names every model and data set
    except UserError as error:
        yield fail("configuration", str(error), "fix it, and run this again")
        return
    config = jobs.config
    yield ok("configuration", f"preset {config.preset}, experiment {config.experiment}")
    if packages.status == "fail":
        return  # what follows imports them

    try:
        from kava.doctor import machine
        from kava.doctor.sources import prompts, sources
    except (ImportError, OSError) as error:  # a driver or library that torch was built for is not there
        yield fail("torch", f"cannot be imported ({error})", software.INSTALL)
        return
    models_and_data = sources(config, same_configuration("kava fetch", arguments))
    yield from models_and_data.checks
    if all(check.status == "ok" for check in models_and_data.checks):
        yield prompts(config)
    yield from machine.gpu(config)
    yield machine.bitsandbytes(config)
    yield machine.memory(jobs)
    yield from machine.disk(jobs, models_and_data.to_come)

"""Look whether this machine can run a preset, before it runs.

    kava doctor
    kava doctor --preset qwen2.5-8gb --json

One line for each thing that a run needs, with what fixes it: Python and packages against their pins, Snakemake, models,
data and its rows, the hub if something has to come from it, whether teacher and student go together and the test
questions fit their positions, torch and CUDA, the GPU and its free memory, bitsandbytes by a real 4-bit product, memory
and disk against what the run takes and downloads. Nothing is downloaded. Exit status 1 if the preset cannot run here,
else 0. Whether every stage fits the GPU is what `kava plan` tells.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

from kava.commandline import add_configuration_options, command_parser, exit_status, load_plan, same_configuration
from kava.config.jobs import Jobs
from kava.config.load import REPOSITORY
from kava.doctor.check import Check, fail, ok
from kava.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("kava doctor", __doc__)
    add_configuration_options(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object on stdout")
    arguments = parser.parse_args(argv)
    failed: list[bool] = []
    return exit_status("kava doctor", lambda: failed.append(_examine(arguments))) or int(failed[0])


def _examine(arguments: argparse.Namespace) -> bool:
    """Print the lines as they are found; whether one of them fails."""
    found = []
    for check in _checks(arguments):
        found.append(check)
        if not arguments.json:
            print(check, flush=True)
    failed = [check.name for check in found if check.status == "fail"]
    if arguments.json:
        print(json.dumps({"can_run": not failed, "checks": [asdict(check) for check in found]}))
    else:
        print(f"\ncannot run here: {', '.join(failed)}" if failed else "\ncan run here")
    return bool(failed)


def _checks(arguments: argparse.Namespace) -> Iterator[Check]:
    from kava.doctor import software

    project = software.project_of(REPOSITORY)
    yield software.python(project)
    packages = software.packages(project, REPOSITORY / "constraints.txt")
    yield packages
    yield software.snakemake(REPOSITORY)
    plan = _plan(arguments)
    if isinstance(plan, Check):
        yield plan
        return
    yield ok("configuration", f"preset {plan.config.preset}, experiment {plan.config.experiment}")
    if packages.status == "fail":
        return  # what follows imports them

    try:
        from kava.doctor import machine
        from kava.doctor.prompts import prompts
        from kava.doctor.sources import sources
    except (ImportError, OSError) as error:  # a driver or library that torch was built for is not there
        yield fail("torch", f"cannot be imported ({error})", software.INSTALL)
        return
    found = sources(plan.config, same_configuration("kava fetch", arguments))
    yield from found.checks
    if all(check.status == "ok" for check in found.checks):
        yield prompts(plan.config)
    yield from machine.gpu(plan.config)
    yield machine.bitsandbytes(plan.config)
    yield machine.memory(plan)
    yield from machine.disk(plan, found.to_come)


def _plan(arguments: argparse.Namespace) -> Jobs | Check:
    try:
        plan = load_plan(arguments)
        _ = plan.report  # names every model and data set
    except UserError as error:
        return fail("configuration", str(error), "mend it, and run this again")
    return plan


if __name__ == "__main__":
    sys.exit(main())

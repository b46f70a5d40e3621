"""What commands and stages share: options that name a configuration, and one way to fail."""

import argparse
import errno
import shlex
import sys
from collections.abc import Callable

from kava.config.jobs import Plan
from kava.config.load import load_config, parse_assignments
from kava.errors import UserError
from kava.noise import leave_out_noise

CONFIGFILE = "config.yaml"


def command_parser(program: str, documentation: str | None) -> argparse.ArgumentParser:
    """Parser whose help is a module's docstring, as it stands."""
    return argparse.ArgumentParser(
        prog=program, description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_configuration_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a configuration."""
    parser.add_argument("--configfile", default=CONFIGFILE, help="configuration (default: %(default)s)")
    parser.add_argument("--preset", help="file of workflow/presets/, in place of the configuration's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, e.g. distill.steps=10"
    )


def load_plan(arguments: argparse.Namespace) -> Plan:
    """Plan of the configuration that the options name."""
    overrides = parse_assignments(arguments.set)
    if arguments.preset:
        overrides["preset"] = arguments.preset
    return Plan(load_config(arguments.configfile, overrides))


def same_configuration(command: str, arguments: argparse.Namespace) -> str:
    """A command line with the options that name this configuration, to be typed."""
    options = [] if arguments.configfile == CONFIGFILE else ["--configfile", arguments.configfile]
    options += ["--preset", arguments.preset] if arguments.preset else []
    options += [word for assignment in arguments.set for word in ("--set", assignment)]
    return shlex.join([*command.split(), *options])


def exit_status(program: str, work: Callable[[], None]) -> int:
    """Run a command; what a user can mend is printed as one line, without a traceback, and gives status 1."""
    leave_out_noise()
    try:
        work()
    except UserError as error:
        message = str(error)
    except Exception as error:
        # safetensors and torch report a full disk in exceptions of their own.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
        if not full:
            raise
        message = f"the disk is full ({error}); make room and run again: what is finished is kept"
    else:
        return 0
    print(f"{program}: error: {message}", file=sys.stderr)
    return 1

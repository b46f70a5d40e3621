"""What commands and stages share: options that name a configuration, and one way to fail."""

import argparse
import io
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kava.config.base import place
from kava.config.jobs import Jobs
from kava.config.load import DEFAULT_PRESET, load_config, parse_assignments
from kava.errors import Interrupted, UserError
from kava.faults import faults_as_sentences
from kava.terminal.noise import leave_out_noise

INTERRUPTED: Final = 128 + signal.SIGINT
CONFIGFILE = "config.yaml"


def command_parser(program: str, documentation: str | None) -> argparse.ArgumentParser:
    """Parser whose help is a module's docstring, as it stands; printed whatever the locale."""
    print_whatever_the_locale()
    return argparse.ArgumentParser(
        prog=program, description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_configuration_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a configuration."""
    parser.add_argument("--configfile", help=f"configuration (default: {CONFIGFILE}, where there is one)")
    parser.add_argument("--preset", help="file of kava/config/presets/, in place of the configuration's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, e.g. distill.steps=10"
    )


def folder(text: str) -> Path:
    """Type of an option that names a folder, as `cache_dir` does."""
    try:
        return Path(place(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def load_plan(arguments: argparse.Namespace) -> Jobs:
    """Jobs of the configuration that the options name."""
    overrides = parse_assignments(arguments.set)
    if arguments.preset:
        overrides["preset"] = arguments.preset
    file = arguments.configfile
    if file is None and Path(CONFIGFILE).exists():
        file = CONFIGFILE
    elif file is None:
        preset = overrides.setdefault("preset", DEFAULT_PRESET)
        print(f"no {CONFIGFILE} in this folder: preset {preset}", file=sys.stderr)
    return Jobs(load_config(file, overrides))


def same_configuration(command: str, arguments: argparse.Namespace) -> str:
    """A command line with the options that name this configuration, to be typed."""
    options = [] if arguments.configfile is None else ["--configfile", arguments.configfile]
    options += ["--preset", arguments.preset] if arguments.preset else []
    options += [word for assignment in arguments.set for word in ("--set", assignment)]
    return shlex.join([*command.split(), *options])


def exit_status(program: str, work: Callable[[], None]) -> int:
    """Run a command; what a user can mend is printed as one line, without a traceback, and gives status 1.

    Ctrl-C gives status 130, as shells have it.
    """
    leave_out_noise()
    try:
        with faults_as_sentences():
            work()
    except Interrupted as error:
        return _say(f"{program}: {error}", INTERRUPTED)
    except KeyboardInterrupt:
        return _say(f"{program}: interrupted; what is finished is kept: run again to go on", INTERRUPTED)
    except UserError as error:
        return _say(f"{program}: error: {error}", 1)
    return 0


def print_whatever_the_locale() -> None:
    """Characters that the locale's encoding lacks are printed as escapes; they are no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status

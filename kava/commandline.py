"""What commands and stages share: options, the jobs of the configuration that they name, and how a command runs."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from kava.config.base import place
from kava.config.jobs import Jobs
from kava.config.load import DEFAULT_PRESET, load_config, parse_assignments
from kava.errors import UserError
from kava.exits import exit_status, print_whatever_the_locale

CONFIGFILE: Final = "config.yaml"


class Option(NamedTuple):
    """An option or argument of a command, as `add_argument` takes it."""

    name: str
    how: dict[str, Any]


def option(name: str, **how: Any) -> Option:
    """An option; what `add_argument` takes, to be given to `run_command`."""
    return Option(name, how)


CONFIGURATION: Final = (
    option("--configfile", help=f"configuration (default: {CONFIGFILE}, where there is one)"),
    option("--preset", help="file of kava/config/presets/, in place of the configuration's"),
    option("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, e.g. distill.steps=10"),
)
JSON: Final = option("--json", action="store_true", help="print JSON on stdout")
STORE: Final = option("path", type=Path, help="folder of the store, or its manifest.json")


def run_command(
    program: str,
    documentation: str | None,
    argv: list[str] | None,
    work: Callable[[argparse.Namespace], int | None],
    *options: Option,
) -> int:
    """Parse the options of a command, run it, and return its exit status.

    Parameters
    ----------
    program, documentation
        Its name, and the text of its help: a module's docstring, as it stands.
    argv
        Arguments; None for those of the process.
    work
        Runs with the parsed options; returns a status, or None for 0.
    options
        In the order in which the help lists them.
    """
    parser = command_parser(program, documentation, *options)
    arguments = parser.parse_args(argv)
    return exit_status(program, lambda: work(arguments))


def command_parser(program: str, documentation: str | None, *options: Option) -> argparse.ArgumentParser:
    """Parser whose help is a module's docstring, as it stands; printed whatever the locale."""
    print_whatever_the_locale()
    parser = argparse.ArgumentParser(
        prog=program, description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, how in options:
        parser.add_argument(name, **how)
    return parser


def folder(text: str) -> Path:
    """Type of an option that names a folder, as `cache_dir` does."""
    try:
        return Path(place(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


CACHE: Final = option("--cache-dir", type=folder, help="folder of stores (default: the configuration's)")


def require_one(arguments: argparse.Namespace, *options: str) -> None:
    """Raise `UserError` for an option that counts something and is less than 1."""
    for name in options:
        if (given := vars(arguments)[name]) < 1:
            raise UserError(f"--{name} {given}: at least one is needed")


def load_jobs(arguments: argparse.Namespace) -> Jobs:
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

"""Options, set-up and output that `kava bench train`, `bench memory` and `bench evaluate` share."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kava.commandline import add_configuration_options, command_parser, load_plan
from kava.config.schema import Config
from kava.errors import UserError
from kava.tasks import task_of

# First steps of every run that are not counted: caches, memory and the batches read ahead settle.
WARM_UP: Final = 3


def bench_parser(command: str, documentation: str | None) -> argparse.ArgumentParser:
    """Parser with the options of all of them."""
    parser = command_parser(f"kava bench {command}", documentation)
    add_configuration_options(parser)
    parser.add_argument(
        "--random-weights", action="store_true", help="teacher and student of this geometry, made up; needs --tokenizer"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="tokenizer of the made-up models")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="work below it (default: the temporary directory)")
    parser.add_argument("--json", action="store_true", help="print a JSON object in place of the table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON there too")
    return parser


def configured(arguments: argparse.Namespace) -> Config:
    """The configuration that the options name; status lines go to stderr.

    Raises
    ------
    UserError
        Options that contradict each other, or what `load_plan` refuses.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("httpx", "lm_eval", "datasets", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if arguments.random_weights and arguments.tokenizer is None:
        raise UserError("--random-weights needs --tokenizer DIR, a directory with the models' tokenizer")
    if arguments.tokenizer and not arguments.random_weights:
        raise UserError("--tokenizer is for --random-weights; models that have weights have a tokenizer too")
    config = load_plan(arguments).config
    if task_of(config.data.kind).harness is None:
        raise UserError(
            f"data.kind is {config.data.kind}, and benchmarks generate answers to questions; set data.kind to demo or "
            "gsm8k, since speed and memory depend on lengths and not on words"
        )
    return config


def require_one(arguments: argparse.Namespace, *options: str) -> None:
    """Raise `UserError` for an option that counts something and is less than 1."""
    for option in options:
        if (given := vars(arguments)[option]) < 1:
            raise UserError(f"--{option} {given}: at least one is needed")


def report(
    arguments: argparse.Namespace,
    measure: Callable[[Path], dict[str, Any]],
    table: Callable[[Mapping[str, Any]], str],
) -> None:
    """Measure in an empty folder that is gone afterwards; print the figures, and write them if it is asked for."""
    from kava.bench.workspace import workspace
    from kava.files import write_json

    with workspace(arguments.folder) as folder:
        figures = measure(folder)
    if arguments.output:
        write_json(arguments.output, figures)
    print(json.dumps(figures, indent=2) if arguments.json else table(figures))


def prepared(config: Config, arguments: argparse.Namespace, folder: Path, tell: Callable[[str], object]) -> Config:
    """The configuration with made-up models, if they are asked for; nothing is tracked."""
    if arguments.random_weights:
        from kava.bench.random_models import with_random_weights

        tell("making teacher and student with random weights")
        config = with_random_weights(config, arguments.tokenizer, folder / "models")
    return config.model_copy(update={"tracker": "none"})


def machine(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured, and on what; no host or user names.

    Parameters
    ----------
    config
        As it was configured.
    arguments
        Of the command.
    """
    import torch

    from kava.bench.run import PACKAGES
    from kava.config.identity import display_name
    from kava.device import choose_device
    from kava.provenance import library_versions

    device = choose_device(config.device)
    return {
        "experiment": config.experiment,
        "teacher": config.teacher.model_dump() | {"model": display_name(config.teacher.model)},
        "student": config.student.model_dump() | {"model": display_name(config.student.model)},
        "random_weights": arguments.random_weights,
        "data": config.data.kind,
        "codec": config.kv.codec.model_dump(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
        "versions": library_versions(PACKAGES),
    }


def show_machine(setup: Mapping[str, Any]) -> str:
    """Models and machine in one line."""
    teacher, student = setup["teacher"], setup["student"]
    how = {"nf4": "4-bit NF4", "int8": "LLM.int8", "none": teacher["dtype"]}[teacher["quantization"]]
    random = ", random weights" if setup["random_weights"] else ""
    threads = f"{setup['threads']} threads" if setup["threads"] > 1 else "one thread"
    cores = f"CPU, {setup['cpu_cores']} cores, {threads}"
    where = cores if setup["device"] == "cpu" else setup["device"]
    return f"{teacher['model']} ({how}) → {student['model']}{random}, data {setup['data']}; {where}"


def columns(lines: Sequence[tuple[str, ...]], left: int = 1) -> list[str]:
    """Cells in columns, the first `left` of them to the left and the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return text

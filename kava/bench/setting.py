"""Options, set-up and output that the benchmarks share."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from kava.commandline import CONFIGURATION, Option, load_jobs, option, require_one, run_command
from kava.config.schema import Config
from kava.errors import UserError
from kava.exits import log_to_stderr
from kava.files import write_json
from kava.tasks import task_of

PACKAGES: Final = ("numcodecs", "numpy", "safetensors", "torch", "transformers", "zarr")
OUTPUT: Final = (
    option("--json", action="store_true", help="print a JSON object in place of the table"),
    option("--output", type=Path, metavar="FILE", help="write the JSON there too"),
)
# Of `bench train`, `bench memory` and `bench evaluate`.
OF_A_RUN: Final = (
    *CONFIGURATION,
    option("--random-weights", action="store_true", help="made-up models of this geometry; needs --tokenizer"),
    option("--tokenizer", type=Path, metavar="DIR", help="tokenizer of the made-up models"),
    option("--folder", type=Path, metavar="DIR", help="work below it (default: the temporary directory)"),
    *OUTPUT,
)
# First steps of every run that are not counted: caches, memory and the batches read ahead settle.
WARM_UP: Final = 3


def count_of(name: str, default: int, what: str) -> Option:
    """An option that counts something."""
    return option(f"--{name}", type=int, default=default, help=f"{what} (default: %(default)s)")


def bench_a_run(
    name: str,
    documentation: str | None,
    argv: list[str] | None,
    measure: Callable[[Config, argparse.Namespace, Path], dict[str, Any]],
    table: Callable[[Mapping[str, Any]], str],
    *options: Option,
) -> int:
    """Run a benchmark of a configuration's stages, and return its exit status.

    Parameters
    ----------
    name, documentation, argv
        Of the command.
    measure
        Works in an empty folder that is gone afterwards. Its configuration has made-up models, if they are asked for,
        and tracks nothing; what was measured, and on what, is added to its figures as `setup`.
    table
        Figures for a terminal.
    options
        Of this benchmark alone; each number of theirs is 1 or more.
    """

    def work(arguments: argparse.Namespace) -> None:
        from kava.bench.workspace import workspace

        require_one(arguments, *(option.name.removeprefix("--") for option in options if option.how.get("type") is int))
        config = _configured(arguments)
        with workspace(arguments.folder) as folder:
            figures = measure(_prepared(config, arguments, folder), arguments, folder)
        show(arguments, figures | {"setup": _machine(config, arguments)}, table)

    return run_command(f"kava bench {name}", documentation, argv, work, *OF_A_RUN, *options)


def show(arguments: argparse.Namespace, figures: dict[str, Any], table: Callable[[Mapping[str, Any]], str]) -> None:
    """Print the figures as a table or as JSON, and write them if it is asked for."""
    if arguments.output:
        write_json(arguments.output, figures)
    print(json.dumps(figures, indent=2) if arguments.json else table(figures))


def _configured(arguments: argparse.Namespace) -> Config:
    log_to_stderr()
    if arguments.random_weights and arguments.tokenizer is None:
        raise UserError("--random-weights needs --tokenizer DIR, a directory with the models' tokenizer")
    if arguments.tokenizer and not arguments.random_weights:
        raise UserError("--tokenizer is for --random-weights; models that have weights have a tokenizer too")
    config = load_jobs(arguments).config
    if task_of(config.data.kind).harness is None:
        raise UserError(
            f"data.kind is {config.data.kind}, and benchmarks generate answers to questions; set data.kind to demo or "
            "gsm8k, since speed and memory depend on lengths and not on words"
        )
    return config


def _prepared(config: Config, arguments: argparse.Namespace, folder: Path) -> Config:
    if arguments.random_weights:
        from kava.bench.random_models import with_random_weights

        config = with_random_weights(config, arguments.tokenizer, folder / "models")
    return config.model_copy(update={"tracker": "none"})


def _machine(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured, by the configuration and the options, and on what; no host or user names."""
    import torch

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
